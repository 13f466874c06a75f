// Charts and the view of the molecule in a report. No libraries, nothing is fetched.
"use strict";
(() => {
  const make = (tag, props = {}, parent = null) => {
    const node = Object.assign(document.createElement(tag), props);
    if (parent) parent.append(node);
    return node;
  };
  const draws = (canvas, height) => {
    const scale = window.devicePixelRatio || 1, width = canvas.parentElement.clientWidth || 640;
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    return [pen, width, height];
  };
  const short = (v) => (v === 0 ? "0" : Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5 ? v.toExponential(1) : String(+v.toPrecision(4)));

  // ------------------------------------------------------------------------ charts

  function ticks(low, high, log) {
    if (log) {
      const found = [];
      for (let p = Math.floor(low); p <= high; p++)
        for (const m of high - low > 3 ? [1] : [1, 2, 5]) {
          const v = p + Math.log10(m);
          if (v >= low && v <= high) found.push(v);
        }
      return found;
    }
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw), found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push(v);
    return found;
  }

  function chart(box) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    for (const image of box.querySelectorAll("img")) image.hidden = true;
    const rows = make("div", { className: "charts" }, box);
    for (const panel of spec) one(panel, make("div", { className: "panel" }, rows));
  }

  function one(panel, box) {
    if (panel.title) make("div", { className: "name", textContent: panel.title }, box);
    const canvas = make("canvas", {}, box), told = make("div", { className: "told" }, box);
    const legend = make("div", { className: "legend" }, box), hidden = new Set();
    const fx = (v) => (panel.logx ? Math.log10(v) : v), fy = (v) => (panel.logy ? Math.log10(v) : v);
    const full = [fx(panel.xlim[0]), fx(panel.xlim[1]), fy(panel.ylim[0]), fy(panel.ylim[1])];
    let view = full.slice(), at = null, begun = null;
    const L = 58, R = 8, T = 6, B = 38;
    let place = null;

    function draw() {
      const [pen, w, h] = draws(canvas, 230), [x0, x1, y0, y1] = view;
      const X = (v) => L + ((fx(v) - x0) / (x1 - x0)) * (w - L - R);
      const Y = (v) => h - B - ((fy(v) - y0) / (y1 - y0)) * (h - T - B);
      place = (px) => x0 + ((px - L) / (w - L - R)) * (x1 - x0);
      pen.font = "11px system-ui, sans-serif";
      pen.fillStyle = "#444";
      pen.strokeStyle = "#eee";
      pen.textAlign = "center";
      const label = (v, log) => short(log ? 10 ** v : v);
      for (const v of ticks(x0, x1, panel.logx)) {
        const x = L + ((v - x0) / (x1 - x0)) * (w - L - R);
        pen.beginPath(); pen.moveTo(x, T); pen.lineTo(x, h - B); pen.stroke();
        pen.fillText(label(v, panel.logx), x, h - B + 14);
      }
      pen.textAlign = "right";
      for (const v of ticks(y0, y1, panel.logy)) {
        const y = h - B - ((v - y0) / (y1 - y0)) * (h - T - B);
        pen.beginPath(); pen.moveTo(L, y); pen.lineTo(w - R, y); pen.stroke();
        pen.fillText(label(v, panel.logy), L - 5, y + 4);
      }
      pen.textAlign = "center";
      pen.fillText(panel.xlabel, (L + w - R) / 2, h - 6);
      pen.save(); pen.translate(12, (T + h - B) / 2); pen.rotate(-Math.PI / 2);
      pen.fillText(panel.ylabel, 0, 0); pen.restore();
      pen.strokeStyle = "#999"; pen.strokeRect(L, T, w - L - R, h - T - B);
      pen.save(); pen.beginPath(); pen.rect(L, T, w - L - R, h - T - B); pen.clip();
      const nearest = [];
      panel.series.forEach((s, n) => {
        if (hidden.has(n)) return;
        pen.strokeStyle = pen.fillStyle = s.color;
        if (s.low) {
          pen.globalAlpha = 0.2; pen.beginPath();
          s.x.forEach((v, i) => pen.lineTo(X(v), Y(s.high[i])));
          for (let i = s.x.length - 1; i >= 0; i--) pen.lineTo(X(s.x[i]), Y(s.low[i]));
          pen.fill(); pen.globalAlpha = 1;
          return;
        }
        pen.lineWidth = 1.5; pen.setLineDash(s.dash ? [4, 3] : []); pen.beginPath();
        s.x.forEach((v, i) => {
          if (s.steps && i) pen.lineTo(X(v), Y(s.y[i - 1]));
          pen.lineTo(X(v), Y(s.y[i]));
        });
        pen.stroke(); pen.setLineDash([]);
        if (s.marker) s.x.forEach((v, i) => { pen.beginPath(); pen.arc(X(v), Y(s.y[i]), 3, 0, 7); pen.fill(); });
        if (s.error) s.x.forEach((v, i) => {
          pen.beginPath(); pen.moveTo(X(v), Y(s.y[i] - s.error[i])); pen.lineTo(X(v), Y(s.y[i] + s.error[i])); pen.stroke();
        });
        if (at !== null && s.name) {
          let best = 0;
          s.x.forEach((v, i) => { if (Math.abs(X(v) - at) < Math.abs(X(s.x[best]) - at)) best = i; });
          nearest.push(`${s.name}: ${short(s.y[best])} at ${short(s.x[best])}`);
        }
      });
      if (at !== null) {
        pen.strokeStyle = "#bbb"; pen.lineWidth = 1; pen.beginPath(); pen.moveTo(at, T); pen.lineTo(at, h - B); pen.stroke();
      }
      if (begun !== null && at !== null) {
        pen.fillStyle = "#0072b2"; pen.globalAlpha = 0.12; pen.fillRect(begun, T, at - begun, h - T - B); pen.globalAlpha = 1;
      }
      pen.restore();
      told.textContent = nearest.join(" · ") || "\u00a0";
    }
    const where = (e) => e.clientX - canvas.getBoundingClientRect().left;
    canvas.addEventListener("pointermove", (e) => { at = where(e); draw(); });
    canvas.addEventListener("pointerleave", () => { at = begun = null; draw(); });
    canvas.addEventListener("pointerdown", (e) => { begun = where(e); });
    canvas.addEventListener("pointerup", (e) => {
      const ends = [begun, where(e)].sort((a, b) => a - b);
      if (begun !== null && ends[1] - ends[0] > 8) { view[0] = place(ends[0]); view[1] = place(ends[1]); ends.length = 0; }
      begun = null; draw();
    });
    canvas.addEventListener("dblclick", () => { view = full.slice(); draw(); });
    canvas.title = "drag: zoom · double click: all";
    panel.series.forEach((s, n) => {
      if (!s.name) return;
      const key = make("button", { type: "button", textContent: s.name }, legend);
      key.style.borderColor = s.color;
      key.addEventListener("click", () => {
        if (!hidden.delete(n)) hidden.add(n);
        key.classList.toggle("off", hidden.has(n));
        draw();
      });
    });
    window.addEventListener("resize", draw);
    draw();
    box.dataset.drawn = "1";
  }

  // -------------------------------------------------------------------- the molecule

  function viewer(box) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const raw = Uint8Array.from(atob(spec.data), (c) => c.charCodeAt(0));
    const numbers = new Int16Array(raw.buffer), atoms = spec.colors.length, frames = spec.frames;
    const canvas = make("canvas", {}, box), bar = make("div", { className: "bar" }, box);
    const play = make("button", { type: "button", textContent: "▶", title: "play" }, bar);
    const slide = make("input", { type: "range", min: 0, max: frames - 1, value: 0 }, bar);
    const choose = make("select", {}, bar), told = make("span", {}, bar);
    spec.walkers.forEach((name, n) => make("option", { value: n, textContent: name }, choose));
    let turn = [1, 0, 0, 0, 1, 0, 0, 0, 1], zoom = 1, timer = null, held = null;

    const times = (a, b) => [0, 1, 2].flatMap((i) => [0, 1, 2].map((j) => a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]));
    function points(frame) {
      const start = (+choose.value * frames + frame) * atoms * 3, found = [];
      for (let n = 0; n < atoms; n++) {
        const [x, y, z] = [0, 1, 2].map((k) => numbers[start + 3 * n + k] * spec.unit);
        found.push(rotated(x, y, z));
      }
      return found;
    }
    const rotated = (x, y, z) => [0, 3, 6].map((k) => turn[k] * x + turn[k + 1] * y + turn[k + 2] * z);

    function draw() {
      const [pen, w, h] = draws(canvas, 340), frame = +slide.value;
      const scale = (zoom * 0.45 * Math.min(w, h)) / spec.radius, at = points(frame);
      pen.clearRect(0, 0, w, h);
      const spot = (p) => [w / 2 + scale * p[0], h / 2 - scale * p[1]];
      pen.strokeStyle = "#ccc"; pen.lineWidth = 1;
      for (const [a, b] of spec.cell) {
        pen.beginPath(); pen.moveTo(...spot(rotated(...a))); pen.lineTo(...spot(rotated(...b))); pen.stroke();
      }
      const items = at.map((p, n) => [p[2], () => {
        const [x, y] = spot(p), r = scale * spec.radii[n];
        const shine = pen.createRadialGradient(x - r / 3, y - r / 3, r / 10, x, y, r);
        shine.addColorStop(0, "#fff"); shine.addColorStop(0.35, spec.colors[n]); shine.addColorStop(1, spec.dark[n]);
        pen.fillStyle = shine; pen.beginPath(); pen.arc(x, y, r, 0, 7); pen.fill();
      }]);
      for (const [a, b] of spec.bonds) items.push([(at[a][2] + at[b][2]) / 2 - 0.2, () => {
        pen.strokeStyle = "#777"; pen.lineWidth = scale * 0.14; pen.beginPath();
        pen.moveTo(...spot(at[a])); pen.lineTo(...spot(at[b])); pen.stroke();
      }]);
      items.sort((a, b) => a[0] - b[0]).forEach((item) => item[1]());
      told.textContent = spec.times.length ? `D·t = ${short(spec.times[frame])} Å²` : `${frame + 1} of ${frames}`;
      box.dataset.frame = frame;
    }
    function step() { slide.value = (+slide.value + 1) % frames; draw(); }
    play.addEventListener("click", () => {
      if (timer === null) timer = setInterval(step, 60);
      else { clearInterval(timer); timer = null; }
      play.textContent = timer === null ? "▶" : "❚❚";
    });
    slide.addEventListener("input", draw);
    choose.addEventListener("change", draw);
    choose.hidden = spec.walkers.length < 2;
    canvas.addEventListener("pointerdown", (e) => { held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointerup", () => { held = null; });
    canvas.addEventListener("pointermove", (e) => {
      if (held === null) return;
      const [a, b] = [(e.clientX - held[0]) / 120, (e.clientY - held[1]) / 120];
      const about = [Math.cos(a), 0, Math.sin(a), 0, 1, 0, -Math.sin(a), 0, Math.cos(a)];
      const tilt = [1, 0, 0, 0, Math.cos(b), -Math.sin(b), 0, Math.sin(b), Math.cos(b)];
      turn = times(tilt, times(about, turn));
      held = [e.clientX, e.clientY];
      draw();
    });
    canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom *= Math.exp(-e.deltaY / 600); draw(); }, { passive: false });
    canvas.title = "drag: turn · wheel: closer";
    window.addEventListener("resize", draw);
    draw();
    box.dataset.drawn = "1";
  }

  document.querySelectorAll(".viewer").forEach(viewer);
  document.querySelectorAll(".chart").forEach(chart);
})();
