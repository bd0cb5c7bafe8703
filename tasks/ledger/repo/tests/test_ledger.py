import os
import tempfile
import unittest

from money.ledger import Ledger


class LedgerTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "journal")

    def test_balances_outlive_the_process(self):
        Ledger(self.path).transfer("ann", "bob", 250)
        again = Ledger(self.path)
        self.assertEqual((again.balance("ann"), again.balance("bob")), (-250, 250))

    def test_a_refused_transfer_moves_nothing(self):
        ledger = Ledger(self.path)
        with self.assertRaises(ValueError):
            ledger.transfer("ann", "bob", -5)
        self.assertEqual(ledger.balance("bob"), 0)
