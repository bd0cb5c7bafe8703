"use strict";

/** Calls listeners by the name of an event, in the order they were added. */
class Emitter {
  constructor() {
    this.listeners = {};
  }

  /** Add a listener; returns a function that removes it again. */
  on(name, listener) {
    (this.listeners[name] ||= []).push(listener);
    return () => this.off(name, listener);
  }

  /** As on, for one event only. */
  once(name, listener) {
    const off = this.on(name, (...values) => {
      off();
      listener(...values);
    });
    return off;
  }

  /** Remove a listener, however it was added; one that is not there is no error. */
  off(name, listener) {
    const found = this.listeners[name];
    found.splice(found.indexOf(listener), 1);
  }

  /** Call those that listen at this moment; returns how many there were. */
  emit(name, ...values) {
    const found = this.listeners[name] || [];
    for (const listener of found) listener(...values);
    return found.length;
  }
}

module.exports = { Emitter };
