"use strict";

const assert = require("node:assert");
const { test } = require("node:test");
const { Emitter } = require("./emitter.js");

test("listeners are called in order", () => {
  const emitter = new Emitter();
  const heard = [];
  emitter.on("x", (value) => heard.push(["a", value]));
  emitter.on("x", (value) => heard.push(["b", value]));
  assert.strictEqual(emitter.emit("x", 1), 2);
  assert.deepStrictEqual(heard, [["a", 1], ["b", 1]]);
});

test("once is once, and the others still hear", () => {
  const emitter = new Emitter();
  const heard = [];
  emitter.once("x", () => heard.push("a"));
  emitter.on("x", () => heard.push("b"));
  emitter.emit("x");
  emitter.emit("x");
  assert.deepStrictEqual(heard, ["a", "b", "b"]);
});
