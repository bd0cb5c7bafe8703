import unittest

from ranges.intervals import covers, merge


class MergeTest(unittest.TestCase):
    def test_overlapping(self):
        self.assertEqual(merge([(1, 4), (3, 8)]), [(1, 8)])

    def test_apart(self):
        self.assertEqual(merge([(1, 2), (5, 6)]), [(1, 2), (5, 6)])

    def test_one_inside_another(self):
        self.assertEqual(merge([(1, 10), (2, 3)]), [(1, 10)])


class CoversTest(unittest.TestCase):
    def test_covers(self):
        self.assertTrue(covers([(1, 2), (5, 6)], 5))
        self.assertFalse(covers([(1, 2), (5, 6)], 4))
