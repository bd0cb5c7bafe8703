import unittest

from store.cache import Cache


class CacheTest(unittest.TestCase):
    def setUp(self):
        self.now = 0.0
        self.cache = Cache(2, ttl_s=10, clock=lambda: self.now)

    def test_what_was_set_is_got(self):
        self.cache.set("a", 1)
        self.assertEqual(self.cache.get("a"), 1)
        self.assertIsNone(self.cache.get("b"))

    def test_the_oldest_goes(self):
        for key in "abc":
            self.cache.set(key, key)
        self.assertIsNone(self.cache.get("a"))
        self.assertEqual(self.cache.get("c"), "c")

    def test_reading_does_not_keep_an_entry_young(self):
        self.cache.set("a", 1)
        self.now = 8
        self.cache.get("a")
        self.now = 12
        self.assertIsNone(self.cache.get("a"))
