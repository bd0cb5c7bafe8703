"use strict";

const assert = require("node:assert");
const { test } = require("node:test");
const { merge } = require("./merge.js");

test("what is over wins", () => {
  assert.deepStrictEqual(merge({ a: 1, b: { c: 1, d: 2 } }, { b: { c: 3 } }), { a: 1, b: { c: 3, d: 2 } });
});

test("the defaults stay as they are", () => {
  const defaults = { port: 80, tls: { on: false } };
  merge(defaults, { port: 81, tls: { on: true } });
  assert.deepStrictEqual(defaults, { port: 80, tls: { on: false } });
});
