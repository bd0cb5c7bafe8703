#!/bin/sh
set -eu
node --test
node - <<'JS'
const assert = require("node:assert");
const { Emitter } = require("./emitter.js");
let heard = [];
const say = (word) => () => heard.push(word);
const fresh = () => ((heard = []), new Emitter());

let emitter = fresh();
emitter.off("never", say("a"));
const a = say("a"), b = say("b");
emitter.on("x", a);
emitter.off("x", b);
assert.strictEqual(emitter.emit("x"), 1);

emitter = fresh();
emitter.once("x", a);
emitter.off("x", a);
assert.strictEqual(emitter.emit("x"), 0);

emitter = fresh();
const offs = [emitter.on("x", a), emitter.on("x", a)];
offs[0]();
offs[0]();
assert.strictEqual(emitter.emit("x"), 1, "a function that removes removes its own, and once");

emitter = fresh();
emitter.on("x", () => emitter.on("x", b));
assert.strictEqual(emitter.emit("x"), 1);
assert.deepStrictEqual(heard, []);

emitter = fresh();
let off;
emitter.on("x", () => off());
off = emitter.on("x", b);
emitter.emit("x");
assert.deepStrictEqual(heard, ["b"], "it listened when emit was called");

emitter = fresh();
emitter.once("x", () => { heard.push("in"); emitter.emit("x"); });
emitter.emit("x");
assert.deepStrictEqual(heard, ["in"], "once, also when its own event is emitted within");

emitter = fresh();
for (const name of ["constructor", "__proto__", "toString"]) {
  assert.strictEqual(emitter.emit(name), 0);
  emitter.on(name, a);
  assert.strictEqual(emitter.emit(name), 1);
}
JS
