"use strict";

const assert = require("node:assert");
const { test } = require("node:test");
const { parseDuration } = require("./duration.js");

test("hours and minutes", () => assert.strictEqual(parseDuration("1h 30m"), 5400));
test("days", () => assert.strictEqual(parseDuration("2d"), 172800));
test("nonsense is refused", () => assert.throws(() => parseDuration("soon"), RangeError));
