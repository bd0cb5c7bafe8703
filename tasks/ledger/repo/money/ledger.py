"""Money that moves between accounts, kept as a journal: one JSON line a transfer."""

import json
import os


class Ledger:
    """Balances in cents, rebuilt from the journal when it is opened."""

    def __init__(self, path):
        self._path = path
        self._balances = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                for line in file:
                    self._count(json.loads(line))

    def transfer(self, source, target, cents):
        """Move an amount. Raises ValueError for one that is not positive; an account may go below zero."""
        entry = {"from": source, "to": target, "cents": cents}
        self._count(entry)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if cents <= 0:
            raise ValueError("an amount must be positive")

    def balance(self, account):
        """Return what an account holds, 0 for one that is not known."""
        return self._balances.get(account, 0)

    def _count(self, entry):
        self._balances[entry["from"]] = self.balance(entry["from"]) - entry["cents"]
        self._balances[entry["to"]] = self.balance(entry["to"]) + entry["cents"]
