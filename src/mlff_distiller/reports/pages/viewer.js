// A trajectory as shaded spheres on a canvas: drag to rotate, wheel to zoom, play, step. Lengths
// are in Å; the eye looks along -z, and pages that load nothing can hold it.
function viewer(root, movie) {
  const canvas = root.querySelector("canvas"), brush = canvas.getContext("2d");
  const slider = root.querySelector("input"), says = root.querySelector("output");
  const playButton = root.querySelector("[data-do=play]");
  const bytes = Uint8Array.from(atob(movie.positions), c => c.charCodeAt(0));
  const packed = new DataView(bytes.buffer);
  const nAtoms = movie.kinds.length, nFrames = movie.time_ps.length;
  const BALL = 0.45;      // of the covalent radius: bonds stay visible
  const BOND = 1.2;       // times the sum of covalent radii: what is drawn as a bond
  const FRAMES_A_SECOND = 20, FOG_LEVELS = 8, SPRITE = 96;
  const START = multiply(multiply(turn(1, 2, 0.35), turn(2, 0, 0.5)), turn(1, 2, -Math.PI / 2));  // z up

  let frame = 0, playing = false, zoom = 1, view = START, bonds = [], bondsOf = -1;
  let sprites = new Map(), waiting = false, timer = 0, held = null;
  const positions = new Float64Array(3 * nAtoms);
  const corners = movie.cell ? cellCorners(movie.cell) : [];
  load(0);
  const centre = middle(), reach = farthest();

  // Geometry

  function load(k) {
    for (let i = 0; i < 3 * nAtoms; i++) {
      positions[i] = movie.scale * packed.getInt16(2 * (3 * nAtoms * k + i), true);
    }
  }

  function cellCorners(cell) {
    return [0, 1, 2, 3, 4, 5, 6, 7].map(n => [0, 1, 2].map(
      axis => [0, 1, 2].reduce((sum, v) => sum + (n >> v & 1) * cell[v][axis], 0)));
  }

  function middle() {
    if (corners.length) return [0, 1, 2].map(a => corners.reduce((sum, c) => sum + c[a] / 8, 0));
    const sum = [0, 0, 0];
    positions.forEach((x, i) => { sum[i % 3] += x / nAtoms; });
    return sum;
  }

  function farthest() {
    let most = 0;
    const from = p => Math.hypot(p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]);
    corners.forEach(c => { most = Math.max(most, from(c)); });
    for (let i = 0; i < nAtoms; i++) most = Math.max(most, from(positions.subarray(3 * i, 3 * i + 3)));
    return most + 1;
  }

  function turn(a, b, angle) {  // rotation in the plane of two axes
    const m = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], c = Math.cos(angle), s = Math.sin(angle);
    [m[a][a], m[a][b], m[b][a], m[b][b]] = [c, -s, s, c];
    return m;
  }

  function multiply(a, b) {
    return a.map(row => [0, 1, 2].map(k => row[0] * b[0][k] + row[1] * b[1][k] + row[2] * b[2][k]));
  }

  function findBonds() {  // over the frame that is loaded, without images
    bonds = [];
    const radii = movie.kinds.map(kind => BOND * movie.elements[kind].radius);
    for (let i = 0; i < nAtoms; i++) {
      for (let j = i + 1; j < nAtoms; j++) {
        const most = radii[i] + radii[j], dx = positions[3 * i] - positions[3 * j];
        if (dx > most || dx < -most) continue;
        const dy = positions[3 * i + 1] - positions[3 * j + 1];
        const dz = positions[3 * i + 2] - positions[3 * j + 2];
        if (dx * dx + dy * dy + dz * dz < most * most) bonds.push([i, j]);
      }
    }
    bondsOf = frame;
  }

  // Drawing

  function mixed(color, other, share) {  // two "#rrggbb"
    const part = (text, k) => parseInt(text.slice(k, k + 2), 16);
    return "rgb(" + [1, 3, 5].map(
      k => Math.round(part(color, k) * (1 - share) + part(other, k) * share)).join(",") + ")";
  }

  function sprite(kind, fog, paper) {  // a sphere lit from above left, paler the farther it is
    const key = kind * FOG_LEVELS + fog;
    if (!sprites.has(key)) {
      const image = document.createElement("canvas"), r = SPRITE / 2;
      image.width = image.height = SPRITE;
      const ink = image.getContext("2d"), color = movie.elements[kind].color;
      const light = ink.createRadialGradient(0.68 * r, 0.62 * r, 0.05 * r, r, r, r);
      const far = 0.45 * fog / (FOG_LEVELS - 1);
      [[0, "#ffffff", 0.75], [0.25, "#ffffff", 0.25], [0.6, color, 0], [1, "#000000", 0.5]].forEach(
        ([at, other, share]) => {
          const lit = mixed(color, other, share).match(/\d+/g);
          const hex = "#" + lit.map(x => (+x).toString(16).padStart(2, "0")).join("");
          light.addColorStop(at, mixed(hex, paper, far));
        });
      ink.fillStyle = light;
      ink.arc(r, r, r - 1, 0, 2 * Math.PI);
      ink.fill();
      sprites.set(key, image);
    }
    return sprites.get(key);
  }

  function draw() {
    waiting = false;
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = ratio * width;
    canvas.height = ratio * height;
    brush.scale(ratio, ratio);
    if (bondsOf !== frame) findBonds();
    const dark = matchMedia("screen and (prefers-color-scheme: dark)").matches;
    const paper = dark ? "#1a212b" : "#ffffff", line = dark ? "#8a97a8" : "#7c8896";
    const size = zoom * Math.min(width, height) / (2 * reach);
    const seen = p => {
      const r = [p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]];
      const [x, y, z] = view.map(row => row[0] * r[0] + row[1] * r[1] + row[2] * r[2]);
      return [width / 2 + size * x, height / 2 - size * y, z];
    };
    const places = movie.kinds.map((_, i) => seen(positions.subarray(3 * i, 3 * i + 3)));
    const box = corners.map(seen), edges = [];
    box.forEach((a, n) => [1, 2, 4].forEach(bit => { if (!(n & bit)) edges.push([a, box[n | bit]]); }));
    const drawEdges = front => edges.filter(([a, b]) => a[2] + b[2] > 0 === front).forEach(([a, b]) =>
      stroke(a, b, 1, line));
    const fogOf = z => Math.max(0, Math.min(FOG_LEVELS - 1,
      Math.round((FOG_LEVELS - 1) * (reach - z) / (2 * reach))));
    const shapes = places.map((place, i) => ({ z: place[2], i }));
    bonds.forEach(([i, j]) => shapes.push({ z: (places[i][2] + places[j][2]) / 2 - 1e-3, i, j }));
    shapes.sort((a, b) => a.z - b.z);
    drawEdges(false);
    for (const { z, i, j } of shapes) {
      const kind = movie.kinds[i], place = places[i];
      if (j === undefined) {
        const r = size * BALL * movie.elements[kind].radius;
        brush.drawImage(sprite(kind, fogOf(z), paper), place[0] - r, place[1] - r, 2 * r, 2 * r);
        continue;
      }
      const half = [0, 1].map(k => (place[k] + places[j][k]) / 2);
      [[place, kind], [places[j], movie.kinds[j]]].forEach(([end, own]) => {
        const shade = mixed(movie.elements[own].color, "#000000", 0.25).match(/\d+/g);
        const hex = "#" + shade.map(x => (+x).toString(16).padStart(2, "0")).join("");
        stroke(end, half, Math.max(1, 0.16 * size), mixed(hex, paper, 0.45 * fogOf(z) / (FOG_LEVELS - 1)));
      });
    }
    drawEdges(true);
  }

  function stroke(a, b, width, color) {
    brush.lineWidth = width;
    brush.strokeStyle = color;
    brush.beginPath();
    brush.moveTo(a[0], a[1]);
    brush.lineTo(b[0], b[1]);
    brush.stroke();
  }

  function redraw() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  // Controls

  function show(k) {
    frame = (k + nFrames) % nFrames;
    load(frame);
    slider.value = frame;
    const when = movie.time_ps[frame];
    says.value = `frame ${frame + 1} of ${nFrames}, ${(when ?? 0).toFixed(3)} ps`;
    redraw();
  }

  function play(on) {
    clearInterval(timer);
    playing = on && nFrames > 1;
    playButton.textContent = playing ? "Pause" : "Play";
    playButton.setAttribute("aria-pressed", playing);
    if (playing) timer = setInterval(() => show(frame + 1), 1000 / FRAMES_A_SECOND);
  }

  function rotate(dx, dy) {  // radians; the right edge and the lower edge come nearer
    view = multiply(multiply(turn(1, 2, dy), turn(2, 0, dx)), view);
    redraw();
  }

  function magnify(factor) {
    zoom = Math.max(0.3, Math.min(20, zoom * factor));
    redraw();
  }

  function reset() { [view, zoom] = [START, 1]; redraw(); }
  function step(by) { play(false); show(frame + by); }

  const keys = {
    ArrowLeft: () => rotate(-0.1, 0), ArrowRight: () => rotate(0.1, 0),
    ArrowUp: () => rotate(0, -0.1), ArrowDown: () => rotate(0, 0.1),
    "+": () => magnify(1.15), "=": () => magnify(1.15), "-": () => magnify(1 / 1.15),
    " ": () => play(!playing), ",": () => step(-1), ".": () => step(1), Home: reset,
  };
  canvas.addEventListener("keydown", event => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  canvas.addEventListener("pointerdown", event => {
    canvas.focus({ preventScroll: true });
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    held = [event.clientX, event.clientY];
  });
  canvas.addEventListener("pointermove", event => {
    if (!(event.buttons & 1) || !held) return;
    rotate((event.clientX - held[0]) / 120, (event.clientY - held[1]) / 120);
    held = [event.clientX, event.clientY];
  });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    magnify(Math.exp(-event.deltaY / 600));
  }, { passive: false });
  playButton.addEventListener("click", () => play(!playing));
  root.querySelector("[data-do=reset]").addEventListener("click", reset);
  slider.addEventListener("input", () => { play(false); show(+slider.value); });
  addEventListener("beforeprint", () => { play(false); draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    sprites = new Map();
    redraw();
  });
  new ResizeObserver(redraw).observe(canvas);
  show(0);
}
