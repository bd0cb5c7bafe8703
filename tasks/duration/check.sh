#!/bin/sh
set -eu
node --test
node - <<'JS'
const assert = require("node:assert");
const { parseDuration } = require("./duration.js");
const good = { "45s": 45, "1h 30m": 5400, "1d2h3m4s": 93784, "5 m": 300, " 1h ": 3600, "0s": 0, "10m 10m": 1200 };
for (const [text, seconds] of Object.entries(good)) assert.strictEqual(parseDuration(text), seconds, text);
for (const text of ["", " ", "soon", "5", "5x", "h", "1h soon", "1.5h", "-1h", "1h30"]) {
  assert.throws(() => parseDuration(text), RangeError, JSON.stringify(text));
}
JS
