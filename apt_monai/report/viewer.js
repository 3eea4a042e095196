// The viewer of a study's report: every contrast in three planes with one cursor, and two contrasts laid over each
// other. Plain canvas: it needs no WebGL, no library and no network. Volumes are RAS+, x fastest, 16-bit codes.
"use strict";
(() => {
  const STUDY = JSON.parse(document.getElementById("study").textContent);
  const { shape, spacing, affine, volumes } = STUDY;
  // a plane looks along `axis`; `across` and `up` both fall towards the right and the bottom of the screen, so that the
  // patient's right, or front, is on the left and front, or top, is up
  const PLANES = [
    { name: "axial", axis: 2, across: 0, up: 1, edges: ["R", "L", "A", "P"] },
    { name: "coronal", axis: 1, across: 0, up: 2, edges: ["R", "L", "S", "I"] },
    { name: "sagittal", axis: 0, across: 1, up: 2, edges: ["A", "P", "S", "I"] },
  ];
  const SYNTHETIC_COLOUR = "#ffb000", TEXT_COLOUR = "#e8e8e8", CROSS_COLOUR = "#46c8ff";
  const strides = [1, shape[0], shape[0] * shape[1]];
  const extent = shape.map((n, axis) => n * spacing[axis]); // mm
  const state = {
    cursor: STUDY.start.slice(),
    crosshair: true,
    uncertainty: false,
    prior: false,
    opacity: 0.6,
    mode: "wipe",
    mix: 0.5, // how much of the compared panes is synthetic
    left: 0,
    right: 0,
  };
  const panes = [];
  const element = (id) => document.getElementById(id);

  function make(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // --- volumes

  async function unpack(id, kind) {
    const text = atob(element(id).textContent.trim());
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const codes = new kind(await new Response(stream).arrayBuffer());
    element(id).remove();
    return codes;
  }

  async function load() {
    for (const [number, volume] of volumes.entries()) {
      volume.codes = await unpack(`volume-${number}`, Uint16Array);
      volume.window = volume.shown.slice();
      if (volume.uncertainty) volume.uncertainty.codes = await unpack(`uncertainty-${number}`, Uint8Array);
      if (volume.prior) volume.prior.codes = await unpack(`prior-${number}`, Uint16Array);
    }
  }

  const offset = (position) => position[0] + strides[1] * position[1] + strides[2] * position[2];
  // what of a contrast is looked at: its prior, in the same window, or itself
  const looked = (volume) => (state.prior && volume.prior) || volume;
  const mark = (volume) => (looked(volume) === volume ? "SYNTHETIC" : "SYNTHETIC prior");
  const layerOf = (volume) => (looked(volume) === volume ? volume.uncertainty : undefined);
  const valueAt = (volume, position) => volume.low + volume.slope * volume.codes[offset(position)];

  // the colours of the uncertainty, from none to the highest: transparent, violet, red, orange, yellow
  const COLOURS = (() => {
    const stops = [[30, 5, 70], [120, 28, 110], [210, 60, 70], [250, 145, 20], [252, 250, 150]];
    const table = new Uint8Array(256 * 3);
    for (let code = 0; code < 256; code++) {
      const place = (code / 255) * (stops.length - 1), below = Math.min(Math.floor(place), stops.length - 2);
      for (let c = 0; c < 3; c++) {
        table[3 * code + c] = stops[below][c] + (place - below) * (stops[below + 1][c] - stops[below][c]);
      }
    }
    return table;
  })();

  function slicePicture(volume, plane) {
    const width = shape[plane.across], height = shape[plane.up];
    const picture = new ImageData(width, height), pixels = picture.data;
    const [low, high] = volume.window;
    const scale = 255 / Math.max(high - low, 1e-9);
    const { low: black, slope, codes } = looked(volume);
    const layer = state.uncertainty && layerOf(volume) ? volume.uncertainty.codes : null;
    const start = state.cursor[plane.axis] * strides[plane.axis];
    for (let row = 0, p = 0; row < height; row++) {
      for (let column = 0; column < width; column++, p += 4) {
        const at = start + (width - 1 - column) * strides[plane.across] + (height - 1 - row) * strides[plane.up];
        const grey = Math.min(255, Math.max(0, (black + slope * codes[at] - low) * scale));
        let red = grey, green = grey, blue = grey;
        if (layer && layer[at]) {
          const share = state.opacity * Math.min(1, layer[at] / 192); // little uncertainty stays see-through
          red += share * (COLOURS[3 * layer[at]] - grey);
          green += share * (COLOURS[3 * layer[at] + 1] - grey);
          blue += share * (COLOURS[3 * layer[at] + 2] - grey);
        }
        pixels[p] = red; pixels[p + 1] = green; pixels[p + 2] = blue; pixels[p + 3] = 255;
      }
    }
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }

  // --- drawing

  // where a plane lies in its pane, in the canvas's pixels
  function place(pane) {
    const { plane, canvas } = pane;
    const scale = Math.min(canvas.width / extent[plane.across], canvas.height / extent[plane.up]);
    const width = extent[plane.across] * scale, height = extent[plane.up] * scale;
    return { left: (canvas.width - width) / 2, top: (canvas.height - height) / 2, width, height };
  }

  function fit(pane) {
    const box = pane.canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
    if (pane.canvas.width !== width || pane.canvas.height !== height) {
      pane.canvas.width = width;
      pane.canvas.height = height;
    }
  }

  function write(context, text, x, y, align, baseline, colour, size) {
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textAlign = align;
    context.textBaseline = baseline;
    context.lineWidth = size / 4;
    context.strokeStyle = "#000";
    context.lineJoin = "round";
    context.strokeText(text, x, y);
    context.fillStyle = colour;
    context.fillText(text, x, y);
  }

  function drawCross(context, pane, box) {
    const { across, up } = pane.plane;
    const x = box.left + box.width * (1 - (state.cursor[across] + 0.5) / shape[across]);
    const y = box.top + box.height * (1 - (state.cursor[up] + 0.5) / shape[up]);
    const gap = 7 * (window.devicePixelRatio || 1);
    context.strokeStyle = CROSS_COLOUR;
    context.globalAlpha = 0.75;
    context.lineWidth = window.devicePixelRatio || 1;
    context.beginPath();
    for (const [x1, y1, x2, y2] of [
      [box.left, y, x - gap, y], [x + gap, y, box.left + box.width, y],
      [x, box.top, x, y - gap], [x, y + gap, x, box.top + box.height],
    ]) {
      context.moveTo(x1, y1);
      context.lineTo(x2, y2);
    }
    context.stroke();
    context.globalAlpha = 1;
  }

  function drawLetters(context, pane, box) {
    const size = 12 * (window.devicePixelRatio || 1), inset = size / 3;
    const { width, height } = pane.canvas;
    const [left, right, top, bottom] = pane.plane.edges;
    write(context, left, inset, height / 2, "left", "middle", TEXT_COLOUR, size);
    write(context, right, width - inset, height / 2, "right", "middle", TEXT_COLOUR, size);
    write(context, top, width / 2, inset, "center", "top", TEXT_COLOUR, size);
    write(context, bottom, width / 2, height - inset, "center", "bottom", TEXT_COLOUR, size);
  }

  function draw(pane) {
    fit(pane);
    const { canvas, plane } = pane, context = canvas.getContext("2d"), box = place(pane);
    const size = 13 * (window.devicePixelRatio || 1), inset = size / 2;
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    const put = (volume) => context.drawImage(slicePicture(volume, plane), box.left, box.top, box.width, box.height);
    if (pane.compares) {
      const left = volumes[state.left], right = volumes[state.right];
      const edge = canvas.width * (1 - state.mix);
      put(left);
      context.save();
      if (state.mode === "wipe") {
        context.beginPath();
        context.rect(edge, 0, canvas.width - edge, canvas.height);
        context.clip();
      } else {
        context.globalAlpha = state.mix;
      }
      put(right);
      context.restore();
      if (state.mode === "wipe") {
        context.fillStyle = SYNTHETIC_COLOUR;
        context.fillRect(edge - size / 12, 0, size / 6, canvas.height);
      }
    } else {
      put(volumes[pane.volume]);
    }
    if (state.crosshair) drawCross(context, pane, box);
    drawLetters(context, pane, box);
    const bottom = canvas.height - inset;
    if (pane.compares) {
      for (const [volume, x, align, share] of [
        [volumes[state.left], inset, "left", 1 - state.mix], [volumes[state.right], canvas.width - inset, "right", state.mix],
      ]) {
        const colour = volume.synthetic ? SYNTHETIC_COLOUR : TEXT_COLOUR;
        const percent = state.mode === "fade" ? ` ${Math.round(100 * share)} %` : "";
        write(context, (volume.synthetic ? volume.label : `${volume.label} ${volume.kind}`) + percent, x, bottom - (volume.synthetic ? size * 1.2 : 0), align, "bottom", colour, size);
        if (volume.synthetic) write(context, mark(volume), x, bottom, align, "bottom", colour, size);
      }
    } else if (volumes[pane.volume].synthetic) {
      write(context, mark(volumes[pane.volume]), inset, bottom, "left", "bottom", SYNTHETIC_COLOUR, size);
    }
  }

  function number(value) {
    return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3);
  }

  function readOut() {
    const [x, y, z] = state.cursor;
    const mm = affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
    const sides = [["L", "R"], ["P", "A"], ["I", "S"]];
    element("position").textContent = mm
      .map((value, axis) => `${sides[axis][Number(value >= 0)]} ${Math.abs(value).toFixed(1)}`).join(" · ") + " mm";
    element("position").dataset.voxel = state.cursor.join(",");
    for (const [index, volume] of volumes.entries()) {
      let text = number(valueAt(looked(volume), state.cursor));
      const layer = layerOf(volume);
      if (layer) text += ` ± ${number(layer.slope * layer.codes[offset(state.cursor)])}`;
      element(`value-${index}`).textContent = text;
    }
    for (const pane of panes) {
      pane.caption.textContent = `${pane.plane.name} ${state.cursor[pane.plane.axis] + 1} of ${shape[pane.plane.axis]}`;
    }
  }

  let waiting = false;
  function refresh() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      panes.forEach(draw);
      readOut();
    });
  }

  // --- what a person does

  function moveTo(position) {
    state.cursor = position.map((value, axis) => Math.min(shape[axis] - 1, Math.max(0, Math.round(value))));
    refresh();
  }

  function step(axis, by) {
    const position = state.cursor.slice();
    position[axis] += by;
    moveTo(position);
  }

  function windowsOf(pane) {
    return pane.compares ? [volumes[state.left], volumes[state.right]] : [volumes[pane.volume]];
  }

  // brightness and contrast in parts of the range that is shown at first
  function adjust(pane, brightness, contrast) {
    for (const volume of windowsOf(pane)) {
      const full = volume.shown[1] - volume.shown[0];
      const middle = (volume.window[0] + volume.window[1]) / 2 - brightness * full;
      const width = Math.min(4 * full, Math.max(full / 50, (volume.window[1] - volume.window[0]) * (1 - contrast)));
      volume.window = [middle - width / 2, middle + width / 2];
    }
    refresh();
  }

  function reset() {
    for (const volume of volumes) volume.window = volume.shown.slice();
    refresh();
  }

  function listen(pane) {
    const { canvas, plane } = pane;
    let last = null;
    const follow = (event) => {
      const frame = canvas.getBoundingClientRect(), ratio = canvas.width / frame.width, box = place(pane);
      const x = ((event.clientX - frame.left) * ratio - box.left) / box.width;
      const y = ((event.clientY - frame.top) * ratio - box.top) / box.height;
      const position = state.cursor.slice();
      position[plane.across] = shape[plane.across] * (1 - x) - 0.5;
      position[plane.up] = shape[plane.up] * (1 - y) - 0.5;
      moveTo(position);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = { x: event.clientX, y: event.clientY, windowing: event.button === 2 || event.shiftKey };
      if (!last.windowing) follow(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      if (!last.windowing) return follow(event);
      adjust(pane, (last.y - event.clientY) / 300, (event.clientX - last.x) / 300);
      last.x = event.clientX;
      last.y = event.clientY;
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      step(plane.axis, event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const actions = {
        ArrowLeft: () => step(plane.across, 1), ArrowRight: () => step(plane.across, -1),
        ArrowUp: () => step(plane.up, 1), ArrowDown: () => step(plane.up, -1),
        PageUp: () => step(plane.axis, 1), PageDown: () => step(plane.axis, -1),
        "+": () => adjust(pane, 0, 0.1), "-": () => adjust(pane, 0, -0.1),
        "]": () => adjust(pane, 0.05, 0), "[": () => adjust(pane, -0.05, 0),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
      event.preventDefault();
      actions[event.key]();
    });
  }

  // --- the page

  function addPane(parent, plane, who, more) {
    const frame = make("figure", "pane");
    const canvas = make("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${who}, ${plane.name} plane; arrow keys move the cursor, page keys the slice`);
    const caption = make("figcaption");
    frame.append(canvas, caption);
    parent.append(frame);
    const widest = more.compares ? extent[plane.across] : Math.max(extent[0], extent[1]);
    canvas.style.aspectRatio = `${widest * 1.06} / ${extent[plane.up] * 1.06}`;
    const pane = { plane, canvas, caption, ...more };
    panes.push(pane);
    listen(pane);
    return pane;
  }

  function buildGrid() {
    const grid = element("grid");
    grid.style.gridTemplateColumns = `repeat(${volumes.length}, minmax(0, 1fr))`;
    for (const [index, volume] of volumes.entries()) {
      const heading = make("div", volume.synthetic ? "heading synthetic" : "heading");
      heading.append(make("strong", "", volume.label), make("span", "kind", volume.kind));
      const value = make("output", "value");
      value.id = `value-${index}`;
      heading.append(value);
      grid.append(heading);
    }
    for (const plane of PLANES) {
      for (const [index, volume] of volumes.entries()) {
        const pane = addPane(grid, plane, `${volume.label}, ${volume.kind}`, { volume: index });
        pane.canvas.id = `pane-${index}-${plane.name}`;
      }
    }
  }

  function buildComparison() {
    const choices = { left: element("left"), right: element("right") };
    const synthetic = volumes.findIndex((volume) => volume.synthetic);
    state.right = synthetic;
    state.left = Math.max(0, volumes.findIndex((volume) => volume.key === volumes[synthetic].neighbour && !volume.synthetic));
    for (const [side, select] of Object.entries(choices)) {
      for (const [index, volume] of volumes.entries()) {
        const option = make("option", "", `${volume.label}, ${volume.kind}`);
        option.value = String(index);
        select.append(option);
      }
      select.value = String(state[side]);
      select.addEventListener("change", () => {
        state[side] = Number(select.value);
        refresh();
      });
    }
    element("compared").style.gridTemplateColumns = PLANES // one scale for all three
      .map((plane) => `minmax(0, ${Math.round(extent[plane.across])}fr)`).join(" ");
    for (const plane of PLANES) {
      addPane(element("compared"), plane, "comparison", { compares: true }).canvas.id = `compared-${plane.name}`;
    }
    element("mix").addEventListener("input", (event) => {
      state.mix = event.target.value / 100;
      refresh();
    });
    for (const choice of document.querySelectorAll("input[name=mode]")) {
      choice.addEventListener("change", () => {
        state.mode = choice.value;
        refresh();
      });
    }
  }

  function drawScale() {
    const layers = volumes.filter((volume) => volume.uncertainty);
    if (!layers.length) {
      element("uncertainty-controls").hidden = true;
      return;
    }
    const canvas = element("scale"), context = canvas.getContext("2d");
    for (let x = 0; x < canvas.width; x++) {
      const code = Math.round((255 * x) / (canvas.width - 1));
      context.fillStyle = `rgb(${COLOURS[3 * code]}, ${COLOURS[3 * code + 1]}, ${COLOURS[3 * code + 2]})`;
      context.fillRect(x, 0, 1, canvas.height);
    }
    const highest = layers.map((volume) => {
      const layer = volume.uncertainty, percent = (100 * 255 * layer.slope) / (volume.shown[1] - volume.shown[0]);
      return `${layers.length > 1 ? `${volume.label} ` : ""}± ${number(255 * layer.slope)} (${percent.toFixed(0)} % of its window)`;
    });
    element("scale-high").textContent = highest.join("; ");
  }

  function bind() {
    element("prior-controls").hidden = !volumes.some((volume) => volume.prior);
    const switches = { crosshair: element("crosshair"), uncertainty: element("uncertainty"), prior: element("prior") };
    for (const [key, box] of Object.entries(switches)) {
      box.checked = state[key];
      box.addEventListener("change", () => {
        state[key] = box.checked;
        refresh();
      });
    }
    element("opacity").addEventListener("input", (event) => {
      state.opacity = event.target.value / 100;
      refresh();
    });
    element("reset").addEventListener("click", reset);
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest && event.target.closest("input, select, button");
      const pressed = { c: switches.crosshair, u: switches.uncertainty, p: switches.prior }[event.key];
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (pressed) pressed.click();
      if (event.key === "r") reset();
    });
    window.addEventListener("resize", refresh);
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser is too old to show the images: use Chrome or Edge 80, Firefox 113, Safari 16.4 or newer");
    }
    await load();
    buildGrid();
    buildComparison();
    drawScale();
    bind();
    panes.forEach(draw);
    readOut();
    element("loading").hidden = true;
    document.body.dataset.ready = "true";
  }

  start().catch((error) => {
    element("loading").textContent = `The images cannot be shown: ${error.message}`;
    element("loading").className = "failed";
    console.error(error);
  });
})();
