// One sample in three dimensions: true beside imagined occupancy, boxes, candidates and the chosen plan, 0 to 3 s ahead.
//
// Everything is drawn in the present ego frame: metres, x ahead, y left, z up. Grids of later moments stand where the ego is then.

import { Color, ColorManagement, Group, LinearSRGBColorSpace, Matrix4, Mesh, PerspectiveCamera, Scene, Vector3, WebGLRenderer } from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { boxes, ego, way } from "./things.js";
import { faces, geometryOf, voxelMaterial } from "./voxels.js";

ColorManagement.enabled = false; // colours are what they are called

const data = JSON.parse(document.getElementById("view").textContent);
const { shape, lower, voxel, seconds, colours, classes, free, movable, ground } = data;
const $ = id => document.getElementById(id);
const size = shape[0] * shape[1] * shape[2];
const PANELS = ["true", "imagined"].filter(name => data.panels[name]);
const GROUND = lower[2] + (Math.floor(-lower[2] / voxel) + 1) * voxel; // the top of the voxels that hold height 0, which paths lie on

const bytes = await (async () => {
  const packed = Uint8Array.from(atob(data.grids), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
})();
const grid = (panel, step) => bytes.subarray(...[0, 1].map(k => (PANELS.indexOf(panel) * seconds.length + step + k) * size));

// ---------------------------------------------------------------- what is drawn

const scenes = {}, layers = {}, cells = {};
const shown = { ground: true, static: true, users: true, boxes: true, candidates: true };
const kind = label => movable.includes(label) ? "users" : ground.includes(label) ? "ground" : "static";
const palette = Array.from({ length: free + 1 }, (_, label) => new Vector3(...colours[label].map(v => v / 255)));
const paint = voxelMaterial(lower, voxel, palette);

function voxels(panel, step) {
  const key = `${panel} ${step}`;
  if (!cells[key]) {
    cells[key] = new Mesh(geometryOf(faces(grid(panel, step), shape, free, label => shown[kind(label)])), paint);
    cells[key].applyMatrix4(new Matrix4().set(...data.panels[panel].frames[step].flat()));
    cells[key].frustumCulled = false;
  }
  return cells[key];
}

function forget() {
  for (const key of Object.keys(cells)) {
    cells[key].removeFromParent();
    cells[key].geometry.dispose();
    delete cells[key];
  }
}

// How many voxels of each kind can be seen: occupied ones with a free or missing neighbour above or beside them.
function counts(panel) {
  const [X, Y, Z] = shape, labels = grid(panel, state.step), found = { ground: 0, static: 0, users: 0 };
  const open = (x, y, z) => x < 0 || y < 0 || x >= X || y >= Y || z >= Z || labels[(x * Y + y) * Z + z] >= free;
  for (let x = 0, at = 0; x < X; x++) for (let y = 0; y < Y; y++) for (let z = 0; z < Z; z++, at++) {
    if (labels[at] < free && (open(x, y, z + 1) || open(x - 1, y, z) || open(x + 1, y, z) || open(x, y - 1, z) || open(x, y + 1, z))) {
      found[kind(labels[at])]++;
    }
  }
  return found;
}

// Green where nobody is expected to be met, over yellow to red.
function riskColour(risk) {
  const hue = 130 * (1 - Math.min(1, Math.max(0, risk)));
  return new Color(`hsl(${Math.round(hue)}, 80%, 45%)`);
}

function build() {
  for (const panel of PANELS) {
    const scene = scenes[panel] = new Scene(), mine = layers[panel] = { boxes: new Group(), candidates: new Group(), ego: [], ways: [] };
    for (const row of data.panels[panel].ego) mine.ego.push(ego(row));
    data.candidates.forEach((one, k) => {
      // candidates drive one way at other speeds: side by side each of them is seen, the first on the left
      const aside = k === data.chosen ? 0 : (k < data.chosen ? 1 : -1) * (0.36 + 0.29 * Math.abs(k - data.chosen));
      mine.ways.push(way(k === data.chosen ? "chosen" : "candidate", one.points, riskColour(one.risk), GROUND, aside));
    });
    if (data.path.length) mine.ways.push(way("true", data.path, null, GROUND));
    mine.candidates.add(...mine.ways.map(one => one.group));
    scene.add(mine.boxes, mine.candidates, ...mine.ego);
  }
}

function boxesNow(panel) {
  const mine = layers[panel].boxes, wanted = `${state.step} ${dark.matches}`;
  if (mine.userData.made === wanted) return;
  mine.userData.made = wanted;
  mine.traverse(one => one.material?.dispose());
  mine.clear();
  mine.add(boxes(data.boxes[state.step], dark.matches ? "#f3f6fa" : "#161b22"));
}

// ---------------------------------------------------------------- how it is looked at

const canvas = $("canvas"), renderer = new WebGLRenderer({ canvas, antialias: true, preserveDrawingBuffer: true });
renderer.outputColorSpace = LinearSRGBColorSpace;
const camera = new PerspectiveCamera(50, 1, 0.5, 500);
camera.up.set(0, 0, 1);
const controls = new OrbitControls(camera, canvas);
controls.maxPolarAngle = Math.PI / 2 - 0.02;
controls.minDistance = 5;
controls.maxDistance = 180;

const state = { step: 0, view: PANELS.length > 1 ? "both" : PANELS[0], playing: false, follow: false };
const dark = matchMedia("(prefers-color-scheme: dark)");

function home() {
  const reach = Math.min(1, shape[0] * voxel / 80);
  camera.position.set(-30 * reach, 9 * reach, 26 * reach);
  controls.target.set(7, 0, 0);
  controls.update();
}

function panelsShown() {
  return state.view === "both" ? PANELS : [state.view];
}

function draw() {
  const width = canvas.clientWidth, height = canvas.clientHeight, panels = panelsShown(), across = width >= height;
  renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
  renderer.setSize(width, height, false);
  renderer.setScissorTest(true);
  canvas.parentElement.classList.toggle("across", across && panels.length > 1);
  const sky = new Color(dark.matches ? "#171b21" : "#e9edf2");
  paint.uniforms.haze.value.set(sky.r, sky.g, sky.b);
  paint.uniforms.near.value = camera.position.distanceTo(controls.target) + 18;
  paint.uniforms.light.value = dark.matches ? 0.86 : 1;
  panels.forEach((panel, k) => {
    const w = across ? width / panels.length : width, h = across ? height : height / panels.length;
    const left = across ? k * w : 0, bottom = across ? 0 : (panels.length - 1 - k) * h;
    const scene = scenes[panel], mine = layers[panel];
    scene.background = sky;
    for (const child of [...scene.children]) if (child.userData.grid) scene.remove(child);
    const mesh = voxels(panel, state.step);
    mesh.userData.grid = true;
    scene.add(mesh);
    boxesNow(panel);
    mine.boxes.visible = shown.boxes;
    mine.ego.forEach((one, step) => { one.visible = step === state.step; });
    mine.ways.forEach(one => one.show(state.step));
    mine.candidates.visible = shown.candidates;
    camera.aspect = w / h;
    camera.updateProjectionMatrix();
    renderer.setViewport(left, bottom, w, h);
    renderer.setScissor(left, bottom, w, h);
    renderer.render(scene, camera);
    const label = $(`label-${panel}`);
    label.hidden = false;
    label.style.left = `${left + 12}px`;
    label.style.top = `${height - bottom - h + 10}px`;
  });
  for (const panel of PANELS) if (!panels.includes(panel)) $(`label-${panel}`).hidden = true;
}

let wanted = false;
function redraw() {
  if (!wanted) requestAnimationFrame(() => { wanted = false; draw(); });
  wanted = true;
}

function go(step) {
  const before = egoAt(state.step);
  state.step = (step + seconds.length) % seconds.length;
  if (state.follow) {
    const moved = egoAt(state.step).sub(before);
    camera.position.add(moved);
    controls.target.add(moved);
    controls.update();
  }
  $("slider").value = state.step;
  $("time").textContent = `${seconds[state.step].toFixed(1)} s`;
  redraw();
}

function egoAt(step) {
  return new Vector3(...data.panels[PANELS[0]].ego[step].slice(0, 2), 0);
}

let timer = 0;
function play(on) {
  state.playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", on);
  clearInterval(timer);
  if (on) timer = setInterval(() => go(state.step + 1), 500);
}

function look(view) {
  if (view !== "both" && !PANELS.includes(view)) return;
  state.view = PANELS.length > 1 ? view : PANELS[0];
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === state.view);
  redraw();
}

function toggle(name) {
  shown[name] = !shown[name];
  forget();
  for (const button of document.querySelectorAll(`[data-layer="${name}"]`)) button.setAttribute("aria-pressed", shown[name]);
  redraw();
}

function follow() {
  state.follow = !state.follow;
  $("follow").setAttribute("aria-pressed", state.follow);
}

// ---------------------------------------------------------------- words and keys

function legend() {
  const present = new Set();
  for (let k = 0; k < bytes.length; k++) if (bytes[k] < free) present.add(bytes[k]);
  $("classes").replaceChildren(...[...present].sort((a, b) => a - b).map(label => {
    const item = document.createElement("li"), swatch = document.createElement("i");
    swatch.style.background = `rgb(${colours[label]})`;
    item.append(swatch, classes[label].replaceAll("_", " "));
    return item;
  }));
}

function candidates() {
  $("choice").hidden = !data.candidates.length;
  $("rows").replaceChildren(...data.candidates.map((one, k) => {
    const row = document.createElement("tr"), swatch = document.createElement("i");
    swatch.style.background = `#${riskColour(one.risk).getHexString()}`;
    const first = document.createElement("td");
    first.append(swatch, one.name);
    row.append(first, ...one.told.map(text => Object.assign(document.createElement("td"), { textContent: text })));
    if (k === data.chosen) row.className = "chosen";
    return row;
  }));
}

const KEYS = {
  " ": () => play(!state.playing), ArrowRight: () => go(state.step + 1), ArrowLeft: () => go(state.step - 1), Home: () => go(0),
  End: () => go(seconds.length - 1), "1": () => look("both"), "2": () => look("true"), "3": () => look("imagined"), g: () => toggle("ground"),
  s: () => toggle("static"), u: () => toggle("users"), b: () => toggle("boxes"), c: () => toggle("candidates"), f: follow,
  r: () => { home(); redraw(); },
};

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || (event.key === " " && event.target.tagName === "BUTTON")) return;
  const act = KEYS[event.key];
  if (act && !(event.target.id === "slider" && event.key.startsWith("Arrow"))) { event.preventDefault(); act(); }
});

build();
home();
legend();
candidates();
$("slider").max = seconds.length - 1;
$("slider").addEventListener("input", event => go(Number(event.target.value)));
$("play").addEventListener("click", () => play(!state.playing));
$("follow").addEventListener("click", follow);
$("home").addEventListener("click", () => { home(); redraw(); });
for (const button of document.querySelectorAll("[data-view]")) {
  button.hidden = PANELS.length < 2;
  button.addEventListener("click", () => look(button.dataset.view));
}
for (const button of document.querySelectorAll("[data-layer]")) button.addEventListener("click", () => toggle(button.dataset.layer));
controls.addEventListener("change", redraw);
dark.addEventListener("change", redraw);
new ResizeObserver(redraw).observe(canvas);
look(state.view);
go(0);
draw();
window.iidriveView = {
  state, shown, go, look, toggle, counts, faces: panel => voxels(panel, state.step).geometry.instanceCount,
};
document.documentElement.dataset.ready = "yes";
