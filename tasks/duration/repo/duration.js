"use strict";

const UNITS = { s: 1, m: 60, h: 3600, d: 86400 };

/** Seconds in a text such as "1h 30m" or "45s". Throws RangeError for anything else. */
function parseDuration(text) {
  let seconds = 0;
  for (const [, amount, unit] of text.matchAll(/(\d+)([smh])/g)) {
    seconds += Number(amount) * UNITS[unit];
  }
  return seconds;
}

module.exports = { parseDuration };
