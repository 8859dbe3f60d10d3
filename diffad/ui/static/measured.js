// How well the verdicts of a labelled batch agree with the labels: one category's numbers and curves.
(() => {
  const diffad = (window.diffad ??= {});
  const LINES = [["image AUROC", "image_auroc"], ["pixel AUROC", "pixel_auroc"], ["AUPRO to 0.3", "aupro"]];

  function measured(name, values) {
    const share = (key) => {
      const [low, high] = values.intervals[key] ?? [];
      const between = low === undefined ? "" : `${low.toFixed(2)} – ${high.toFixed(2)}`;
      return `<td><b>${values[key] === null ? "–" : values[key].toFixed(3)}</b></td><td class="quiet">${between}</td>`;
    };
    const { image_roc, pro } = values.curves;
    const about = [values.folders, ...values.notes].map((line) => `<p class="quiet">${diffad.escape(line)}</p>`).join("");
    return `<div><table><caption class="quiet">${diffad.escape(name)}: ${values.images} pictures, ${values.defective} defective</caption>
      <thead><tr><td></td><td></td><td class="quiet">95 % interval</td></tr></thead>
      <tbody>${LINES.map(([title, key]) => `<tr><th scope="row">${title}</th>${share(key)}</tr>`).join("")}</tbody></table></div>
      ${curve("ROC, pictures", image_roc, 1, "false alarms", "found")}${curve("PRO, regions", pro, 0.3, "false pixels", "overlap")}
      <div class="about">${about}</div>`;
  }

  function curve(title, points, end, across, up) {
    if (!points) return "";
    const [w, h, left, top, low] = [118, 134, 12, 20, 118];
    const [wide, tall] = [w - left - 4, low - top];
    const line = points.map(([x, y]) => `${(left + (wide * x) / end).toFixed(1)},${(low - tall * y).toFixed(1)}`).join(" ");
    return `<svg class="measure" viewBox="0 0 ${w} ${h}" role="img" aria-label="${title}: ${up} against ${across}">
      <text x="${left}" y="11">${title}</text><text x="${left - 4}" y="${top + 8}" text-anchor="end">1</text>
      <line class="axis" x1="${left}" x2="${left + wide}" y1="${low}" y2="${low}"/><line class="axis" x1="${left}" x2="${left}" y1="${top}" y2="${low}"/>
      <polyline points="${line}"/><text x="${left}" y="${h - 3}">0</text><text x="${left + wide}" y="${h - 3}" text-anchor="end">${end}</text>
      <text x="${left + wide / 2}" y="${h - 3}" text-anchor="middle">${across}</text></svg>`;
  }

  diffad.measured = measured;
})();
