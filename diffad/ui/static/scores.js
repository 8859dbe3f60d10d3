// What Python computes from the network's maps, computed again in the browser while a slider moves: fusion.py,
// image_score.py and regions.py in diffad/method. Functions of numbers and typed arrays; tests/test_judgement.py compares
// the two.
(() => {
  let rule = null; // the constants, RULE in calibration.py, which Python sends with the page
  const learnRule = (sent) => { rule = sent; };

  // Mean of the given maps or rows, element by element.
  function mean(rows) {
    const sum = Float32Array.from(rows[0]);
    for (const row of rows.slice(1)) for (let i = 0; i < sum.length; i++) sum[i] += row[i];
    if (rows.length > 1) for (let i = 0; i < sum.length; i++) sum[i] /= rows.length;
    return sum;
  }

  const plainWeight = () => rule.plain_weight;

  // The pixel branch's weight (branch_weights).
  const pixelWeight = (alpha) => (alpha * rule.pixel_trust) / (alpha * rule.pixel_trust + 1 - alpha);

  // (11): both branches by their weights, and the plain features if the category has them (fuse).
  function fuse(pixel, feature, weight, plain = null) {
    const fused = new Float32Array(pixel.length);
    for (let i = 0; i < fused.length; i++) fused[i] = weight * pixel[i] + (1 - weight) * feature[i];
    const share = rule.plain_weight;
    if (plain) for (let i = 0; i < fused.length; i++) fused[i] = (1 - share) * fused[i] + share * plain[i];
    return fused;
  }

  // Maps from the whole numbers in which they were sent (from_codes).
  function fromCodes(codes) {
    const values = Float32Array.from({ length: 256 }, (_, code) => Math.sinh((code - rule.zero) / rule.steps));
    return Float32Array.from(codes, (code) => values[code]);
  }

  // Means over the cells of a window [top, left, bottom, right] of a map `width` px wide, highest first (cells_of).
  function rankedCells(map, width, [top, left, bottom, right], size) {
    const spans = (from, to) => {
      const length = to - from;
      const count = Math.max(1, Math.min(length, roundedToEven((rule.cells * length) / size)));
      return Array.from({ length: count }, (_, i) => [from + Math.floor((i * length) / count), from + Math.ceil(((i + 1) * length) / count)]);
    };
    const [rows, columns] = [spans(top, bottom), spans(left, right)];
    const means = new Float32Array(rows.length * columns.length);
    rows.forEach(([up, down], r) => columns.forEach(([start, end], c) => {
      let sum = 0;
      for (let y = up; y < down; y++) for (let x = start; x < end; x++) sum += map[y * width + x];
      means[r * columns.length + c] = sum / ((down - up) * (end - start));
    }));
    return means.sort().reverse();
  }

  // Python's round: halves to the even number.
  const roundedToEven = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));

  // How maps are scored, from the good parts' fused maps over cells, each highest first (ImageScore.of).
  function scorer(good, changed) {
    const above = good.reduce((sum, cells) => sum + cells[rule.excess_from - 1] - cells[rule.level - 1], 0) / good.length;
    const peaks = good.map(peakOf);
    const excesses = good.map((cells) => excessOf(cells, above));
    const [[peak, peakScale], [middle, excessScale]] = [gumbel(peaks), gumbel(excesses)];
    const scale = peakScale / Math.max(excessScale, (peakScale * rule.peak) / rule.cells ** 2);
    const shift = peak - scale * middle;
    return { above, shift, scale, changed, good: peaks.map((value, i) => Math.max(value, shift + scale * excesses[i])) };
  }

  const peakOf = (cells) => {
    const top = cells.subarray(0, rule.peak);
    return top.reduce((sum, value) => sum + value, 0) / top.length;
  };

  function excessOf(cells, above) {
    const from = cells[Math.min(rule.level, cells.length) - 1] + above;
    let sum = 0;
    for (let i = 0; i < cells.length && cells[i] > from; i++) sum += cells[i] - from;
    return sum / rule.cells ** 2;
  }

  // The score of a map `width` px wide: the highest of its windows' scores (ImageScore, Tiling.score).
  function imageScore(map, width, windows, size, by) {
    return Math.max(...windows.map((window) => {
      const cells = rankedCells(map, width, window, size);
      return Math.max(peakOf(cells), by.shift + by.scale * excessOf(cells, by.above));
    }));
  }

  // A quantile of sorted values, interpolated linearly.
  function quantile(sorted, share) {
    const at = share * (sorted.length - 1);
    const low = sorted[Math.floor(at)];
    return low + (at % 1) * (sorted[Math.ceil(at)] - low);
  }

  // The score that hardly any good part exceeds, from the quartiles of the good scores (_usual_end).
  function usualEnd(goodScores, rate = 3e-4) {
    const sorted = Float64Array.from(goodScores).sort();
    const scale = (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / (Math.log(Math.log(4)) - Math.log(Math.log(4 / 3)));
    const mode = quantile(sorted, 0.5) + scale * Math.log(Math.log(2));
    return mode - scale * Math.log(-Math.log1p(-rate));
  }

  // The good scores beyond that (unusual).
  function unusual(goodScores) {
    const end = usualEnd(goodScores);
    return goodScores.filter((score) => score > end);
  }

  // Mean and scale of the extreme-value law of good parts' scores; unusual ones count as if they lay at that end (_gumbel).
  function gumbel(scores) {
    const end = usualEnd(scores);
    const goodScores = scores.map((score) => Math.min(score, end));
    const n = goodScores.length;
    const level = goodScores.reduce((sum, s) => sum + s, 0) / n;
    const variance = n > 1 ? goodScores.reduce((sum, s) => sum + (s - level) ** 2, 0) / (n - 1) : 0;
    const spread = Math.sqrt(variance) * (1 + 1 / n);
    return [level, (Math.max(spread, 0.05 * Math.abs(level), 1e-6) * Math.sqrt(6)) / Math.PI];
  }

  // The laws of good pictures' scores and of changed copies' scores (law_of_changed); the latter is null if unknown.
  const laws = ({ good, changed }) => {
    const law = gumbel(good);
    return [law, changed && [law[0] + changed[0] * law[1], changed[1] * law[1]]];
  };
  const exceeded = ([level, scale], rate) => level + scale * (-Math.log(-Math.log1p(-rate)) - rule.euler);
  function exceeding([level, scale], score) {
    const exponent = -(score - level) / scale - rule.euler;
    return exponent > 50 ? 1 : -Math.expm1(-Math.exp(exponent));
  }

  // The score that a share `rate` of good pictures would exceed, each with `chances` tiles (threshold_for).
  function thresholdFor(by, rate, chances = 1) {
    const [law, changed] = laws(by);
    const ofOne = -Math.expm1(Math.log1p(-rate) / chances);
    const limit = exceeded(law, ofOne);
    return changed && rule.changed_rate * ofOne < 1 ? Math.max(limit, exceeded(changed, rule.changed_rate * ofOne)) : limit;
  }

  // The share of good pictures expected above a score, the inverse of thresholdFor (rate_for).
  function rateFor(by, score, chances = 1) {
    const [law, changed] = laws(by);
    const ofOne = Math.max(exceeding(law, score), changed ? exceeding(changed, score) / rule.changed_rate : 0);
    return ofOne >= 1 ? 1 : -Math.expm1(chances * Math.log1p(-ofOne));
  }

  // The 95 % confidence interval of that share, as far as the number of good pictures goes (rate_bounds).
  function rateBounds(by, score, chances = 1) {
    const [level, scale] = gumbel(by.good);
    const spread = (scale * Math.PI) / Math.sqrt(6);
    const k = (score - level) / spread;
    const error = spread * Math.sqrt((1 + rule.skewness * k + ((rule.excess_kurtosis + 2) * k ** 2) / 4) / by.good.length);
    return [1, -1].map((side) => rateFor(by, score + side * 1.96 * error, chances));
  }

  // The verdict, and the limit that the map is compared with (verdict_for in inspection.py).
  function judged(score, threshold, look) {
    const verdict = score > threshold ? "anomalous" : score > look ? "look" : "good";
    return { verdict, mapLimit: verdict === "look" ? look : threshold };
  }

  // The value above which a map shows where the part differs (map_limit_for in inspection.py).
  function outlinedFrom(map, limit, verdict) {
    const highest = map.reduce((most, value) => Math.max(most, value), -Infinity);
    return verdict === "good" || highest > limit ? limit : highest / 2;
  }

  // 8-connected components of map > threshold with at least `smallest` px, highest peak first; boxes in map px
  // (find_regions).
  function regions(map, width, height, threshold, smallest) {
    const found = [];
    const visited = new Uint8Array(map.length);
    for (let start = 0; start < map.length; start++) {
      if (visited[start] || map[start] <= threshold) continue;
      const stack = [start];
      visited[start] = 1;
      let [left, top, right, bottom, area, sum, peak] = [width, height, 0, 0, 0, 0, -Infinity];
      while (stack.length) {
        const i = stack.pop();
        const x = i % width;
        const y = (i - x) / width;
        area += 1;
        sum += map[i];
        peak = Math.max(peak, map[i]);
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
        for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
          for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
            const j = v * width + u;
            if (!visited[j] && map[j] > threshold) {
              visited[j] = 1;
              stack.push(j);
            }
          }
      }
      if (area >= smallest)
        found.push({ x: left, y: top, width: right - left + 1, height: bottom - top + 1, area, peak, mean: sum / area });
    }
    return found.sort((a, b) => b.peak - a.peak);
  }

  // The line where the map crosses the threshold, interpolated linearly between pixel centres: a Path2D in map px.
  function contour(map, width, height, threshold) {
    const path = new Path2D();
    for (let y = 0; y + 1 < height; y++)
      for (let x = 0; x + 1 < width; x++) {
        const i = y * width + x;
        const [a, b, c, d] = [map[i], map[i + 1], map[i + width + 1], map[i + width]]; // clockwise
        const above = (a > threshold) + (b > threshold) + (c > threshold) + (d > threshold);
        if (above === 0 || above === 4) continue;
        const share = (from, to) => (threshold - from) / (to - from);
        const points = [];
        if (a > threshold !== b > threshold) points.push([x + share(a, b), y]);
        if (b > threshold !== c > threshold) points.push([x + 1, y + share(b, c)]);
        if (c > threshold !== d > threshold) points.push([x + 1 - share(c, d), y + 1]);
        if (d > threshold !== a > threshold) points.push([x, y + 1 - share(d, a)]);
        // A saddle has four crossings, joined so that the side on which the cell's middle lies stays connected.
        if (points.length === 4 && (a + b + c + d) / 4 > threshold !== a > threshold) points.push(points.shift());
        for (let p = 0; p < points.length; p += 2) {
          path.moveTo(points[p][0] + 0.5, points[p][1] + 0.5);
          path.lineTo(points[p + 1][0] + 0.5, points[p + 1][1] + 0.5);
        }
      }
    return path;
  }

  // A map with its longest side at most `longest` px, by averaging whole blocks: { values, width, height }.
  function gridMap(map, width, height, longest) {
    const block = Math.ceil(Math.max(width, height) / longest);
    if (block === 1) return { values: map, width, height };
    const [w, h] = [Math.ceil(width / block), Math.ceil(height / block)];
    const [sum, count] = [new Float32Array(w * h), new Float32Array(w * h)];
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const i = Math.floor(y / block) * w + Math.floor(x / block);
        sum[i] += map[y * width + x];
        count[i] += 1;
      }
    return { values: sum.map((value, i) => value / count[i]), width: w, height: h };
  }

  // A map resampled to fewer px with a triangle filter as wide as the px that become one (resize_maps in geometry.py).
  function shrunk(map, width, height, newWidth, newHeight) {
    const rows = shrunkAlong(map, height, newHeight, width, 1, width);
    return shrunkAlong(rows, width, newWidth, 1, width, newHeight);
  }

  // Resamples one axis of a map. step: from value to value along the axis; across: from one of its `lines` to the next.
  function shrunkAlong(map, count, newCount, step, across, lines) {
    const scale = count / newCount;
    const out = new Float32Array(newCount * lines);
    const newAcross = step === 1 ? newCount : across;
    for (let i = 0; i < newCount; i++) {
      const centre = (i + 0.5) * scale;
      const [from, to] = [Math.max(0, Math.floor(centre - scale + 0.5)), Math.min(count, Math.floor(centre + scale + 0.5))];
      const weights = Array.from({ length: to - from }, (_, k) => Math.max(0, 1 - Math.abs(from + k + 0.5 - centre) / scale));
      const total = weights.reduce((sum, w) => sum + w, 0);
      for (let line = 0; line < lines; line++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * map[(from + k) * step + line * across];
        out[i * step + line * newAcross] = sum / total;
      }
    }
    return out;
  }

  (window.diffad ??= {}).scores = {
    learnRule, mean, pixelWeight, plainWeight, fuse, fromCodes, scorer, imageScore, thresholdFor, rateFor, rateBounds, unusual, judged, outlinedFrom, regions, contour, gridMap, shrunk,
  };
})();
