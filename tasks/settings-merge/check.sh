#!/bin/sh
set -eu
node --test
node - <<'JS'
const assert = require("node:assert");
const { merge } = require("./merge.js");
const same = (base, over, result) => assert.deepStrictEqual(merge(base, over), result, JSON.stringify([base, over]));
same({}, {}, {});
same({ a: null }, { a: { b: 1 } }, { a: { b: 1 } });
same({ a: { b: 1 } }, { a: null }, { a: null });
same({ a: [1, 2, 3] }, { a: [4] }, { a: [4] });
same({ a: [1] }, { a: { b: 1 } }, { a: { b: 1 } });
same({ a: 1 }, { a: undefined }, { a: 1 });
same({ a: { b: 1 } }, { a: { b: undefined, c: 2 } }, { a: { b: 1, c: 2 } });
const day = new Date(0), map = new Map([[1, 2]]);
assert.strictEqual(merge({ a: { b: 1 } }, { a: day }).a, day);
assert.strictEqual(merge({ a: new Date(5) }, { a: day }).a, day);
assert.strictEqual(merge({ a: map }, {}).a, map);
const base = { a: { b: [{ c: 1 }] } }, over = { d: { e: [{ f: 1 }] } };
const merged = merge(base, over);
merged.a.b[0].c = 2; merged.a.b.push(1); merged.d.e[0].f = 2; merged.d.g = 1;
assert.deepStrictEqual([base, over], [{ a: { b: [{ c: 1 }] } }, { d: { e: [{ f: 1 }] } }]);
const evil = merge({}, JSON.parse('{"__proto__": {"bad": 1}, "constructor": {"prototype": {"bad": 1}}}'));
assert.strictEqual({}.bad, undefined);
assert.strictEqual(evil.bad, undefined);
assert.strictEqual(Object.getPrototypeOf(evil), Object.prototype);
same({}, { toString: { a: 1 } }, { toString: { a: 1 } });
same(Object.create({ inherited: 1 }), {}, {});
JS
