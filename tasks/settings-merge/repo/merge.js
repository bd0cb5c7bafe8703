"use strict";

function isObject(value) {
  return typeof value === "object";
}

/**
 * A new object with what both hold; where both hold plain objects under a name they are merged, else `over` wins.
 * A value of undefined in `over` says nothing. Neither argument is changed, and the result shares no plain object or array
 * with them. Dates, maps and other instances are values: they are taken as they are.
 */
function merge(base, over) {
  const merged = base;
  for (const name in over) {
    if (isObject(over[name]) && isObject(merged[name])) {
      merged[name] = merge(merged[name], over[name]);
    } else {
      merged[name] = over[name];
    }
  }
  return merged;
}

module.exports = { merge };
