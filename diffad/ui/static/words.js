// Numbers and shares as text.
(() => {
  const diffad = (window.diffad ??= {});

  // A score with three significant digits.
  const number = (value) => value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2).replace("-", "−");
  const duration = (seconds) => (seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`);
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const capitalised = (text) => text[0].toUpperCase() + text.slice(1);
  const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // A share of good parts, as share_in_words in report/document.py; `part` is empty if the sentence has already named it.
  function shareInWords(share, part = " good part") {
    if (share <= 0.0005) return `fewer than 1${part} in 2000`;
    if (share >= 0.995) return `every${part || " one"}`;
    if (share > 0.4) return `${Math.round(100 * share)} %${part && ` of the${part}s`}`;
    return `about 1${part} in ${Math.round(1 / share)}`;
  }

  Object.assign(diffad, { number, duration, plural, capitalised, escape, clamp, shareInWords });
})();
