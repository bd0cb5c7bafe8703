import unittest

from build.order import Cycle, order


class OrderTest(unittest.TestCase):
    def test_what_is_needed_comes_first(self):
        self.assertEqual(order({"app": ["lib"], "lib": ["libc"]}), ["libc", "lib", "app"])

    def test_a_cycle_is_refused(self):
        with self.assertRaises(Cycle):
            order({"a": ["b"], "b": ["a"]})

    def test_a_cycle_names_only_its_own_parts(self):
        with self.assertRaises(Cycle) as caught:
            order({"app": ["b"], "b": ["c"], "c": ["b"]})
        self.assertEqual(set(caught.exception.parts), {"b", "c"})
