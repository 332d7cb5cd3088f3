// A clock that only goes when it is set forward: it takes the place of setTimeout and clearTimeout.

export class Clock {
  #now = 0;
  #timers = new Map();
  #last = 0;

  /** For the length of one test. */
  constructor(test) {
    const {setTimeout, clearTimeout} = globalThis;
    globalThis.setTimeout = (act, milliseconds) => {
      this.#timers.set(++this.#last, {due: this.#now + milliseconds, act});
      return this.#last;
    };
    globalThis.clearTimeout = (timer) => this.#timers.delete(timer);
    test.after(() => Object.assign(globalThis, {setTimeout, clearTimeout}));
  }

  /** Milliseconds since the beginning. */
  get now() {
    return this.#now;
  }

  /** How many timers are armed: none, once all is closed. */
  get pending() {
    return this.#timers.size;
  }

  /** Set it forward by so many seconds, from deadline to deadline. */
  advance(seconds) {
    const end = this.#now + seconds * 1000;
    for (;;) {
      const [next] = [...this.#timers].filter(([, {due}]) => due <= end).sort(([, a], [, b]) => a.due - b.due);
      if (!next) break;
      this.#timers.delete(next[0]);
      this.#now = next[1].due;
      next[1].act();
    }
    this.#now = end;
  }
}
