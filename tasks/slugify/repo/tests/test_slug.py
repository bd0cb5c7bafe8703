import unittest

from textkit.slug import slugify


class SlugifyTest(unittest.TestCase):
    def test_words_are_joined(self):
        self.assertEqual(slugify("Hello, World!"), "hello-world")

    def test_accents_are_dropped(self):
        self.assertEqual(slugify("Crème brûlée"), "creme-brulee")

    def test_separator(self):
        self.assertEqual(slugify("a b c", separator="_"), "a_b_c")

    def test_a_title_of_just_the_limit_is_kept(self):
        self.assertEqual(slugify("release notes", max_length=13), "release-notes")

    def test_words_that_fit_are_kept(self):
        self.assertEqual(slugify("release notes archive", max_length=13), "release-notes")

    def test_a_long_word_is_cut(self):
        self.assertEqual(slugify("incomprehensibilities", max_length=8), "incompre")


if __name__ == "__main__":
    unittest.main()
