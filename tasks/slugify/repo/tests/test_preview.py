import unittest

from textkit.preview import preview


class PreviewTest(unittest.TestCase):
    def test_short_text_is_kept(self):
        self.assertEqual(preview("a  short\ntext"), "a short text")

    def test_long_text_is_cut_between_words(self):
        self.assertEqual(preview("one two three four", max_length=10), "one two…")


if __name__ == "__main__":
    unittest.main()
