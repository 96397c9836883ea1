// One sample in three dimensions: true beside imagined occupancy, boxes, candidates and the chosen plan, 0 to 3 s ahead.
//
// Everything is drawn in the present ego frame: metres, x ahead, y left, z up. Grids of later moments stand where the ego is then.

import {
  AmbientLight, BoxGeometry, BufferGeometry, CircleGeometry, Color, DirectionalLight, EdgesGeometry, Float32BufferAttribute, Group, InstancedMesh,
  LineBasicMaterial, LineSegments, Matrix4, Mesh, MeshBasicMaterial, MeshLambertMaterial, PerspectiveCamera, Scene, Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

const data = JSON.parse(document.getElementById("view").textContent);
const { shape, lower, voxel, seconds, colours, classes, free, movable, ground } = data;
const $ = id => document.getElementById(id);
const size = shape[0] * shape[1] * shape[2];
const PANELS = ["true", "imagined"].filter(name => data.panels[name]);
const LIFT = 0.35; // metres that paths lie above the ground, so that voxels of the road do not hide them

const bytes = await (async () => {
  const packed = Uint8Array.from(atob(data.grids), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
})();
const grid = (panel, step) => bytes.subarray(...[0, 1].map(k => (PANELS.indexOf(panel) * seconds.length + step + k) * size));

// ---------------------------------------------------------------- what is drawn

const scenes = {}, layers = {}, cells = {};
const shown = { ground: true, static: true, users: true, boxes: true, candidates: true };
const cube = new BoxGeometry(voxel * 0.96, voxel * 0.96, voxel * 0.96);
const kind = label => movable.includes(label) ? "users" : ground.includes(label) ? "ground" : "static";

function matrix(rows) {
  return new Matrix4().set(...rows.flat());
}

// Voxels that can be seen: occupied ones with a free or missing neighbour.
function visible(labels) {
  const [X, Y, Z] = shape, found = { ground: [], static: [], users: [] };
  const open = (x, y, z) => x < 0 || y < 0 || x >= X || y >= Y || z >= Z || (z >= 0 && labels[(x * Y + y) * Z + z] >= free);
  for (let x = 0, at = 0; x < X; x++) for (let y = 0; y < Y; y++) for (let z = 0; z < Z; z++, at++) {
    const label = labels[at];
    if (label < free && (open(x, y, z + 1) || open(x - 1, y, z) || open(x + 1, y, z) || open(x, y - 1, z) || open(x, y + 1, z))) {
      found[kind(label)].push([x, y, z, label]);
    }
  }
  return found;
}

function voxels(panel, step) {
  const key = `${panel} ${step}`;
  if (!cells[key]) {
    const group = new Group(), place = new Matrix4(), colour = new Color();
    group.applyMatrix4(matrix(data.panels[panel].frames[step]));
    for (const [name, found] of Object.entries(visible(grid(panel, step)))) {
      const mesh = new InstancedMesh(cube, new MeshLambertMaterial(), Math.max(found.length, 1));
      mesh.count = found.length;
      found.forEach(([x, y, z, label], k) => {
        mesh.setMatrixAt(k, place.makeTranslation(...[x, y, z].map((v, axis) => lower[axis] + (v + 0.5) * voxel)));
        mesh.setColorAt(k, colour.setRGB(...colours[label].map(v => v / 255), "srgb"));
      });
      mesh.frustumCulled = false;
      mesh.userData.kind = name;
      group.add(mesh);
    }
    cells[key] = group;
  }
  return cells[key];
}

function box([x, y, z, length, width, height, yaw], colour) {
  const edges = new LineSegments(new EdgesGeometry(new BoxGeometry(length, width, height)), new LineBasicMaterial({ color: colour }));
  edges.position.set(x, y, z);
  edges.rotation.z = yaw;
  return edges;
}

// A flat ribbon along a path: lines of WebGL are one pixel wide.
function ribbon(all, width, colour, opacity, order) {
  const corners = [], faces = [], height = LIFT;
  all.forEach(([x, y], k) => {
    const a = all[Math.max(k - 1, 0)], b = all[Math.min(k + 1, all.length - 1)];
    const length = Math.hypot(b[0] - a[0], b[1] - a[1]) || 1;
    const nx = -(b[1] - a[1]) / length * width / 2, ny = (b[0] - a[0]) / length * width / 2;
    corners.push(x + nx, y + ny, height, x - nx, y - ny, height);
    if (k) faces.push(2 * k - 2, 2 * k - 1, 2 * k, 2 * k - 1, 2 * k + 1, 2 * k);
  });
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new Float32BufferAttribute(corners, 3));
  geometry.setIndex(faces);
  const material = new MeshBasicMaterial({ color: colour, transparent: opacity < 1, opacity, side: 2, depthTest: false });
  const mesh = new Mesh(geometry, material);
  mesh.renderOrder = order;
  return mesh;
}

// Where a path ends.
function end([x, y], radius, colour, order) {
  const mesh = new Mesh(new CircleGeometry(radius, 24), new MeshBasicMaterial({ color: colour, depthTest: false, transparent: true }));
  mesh.position.set(x, y, LIFT);
  mesh.renderOrder = order;
  return mesh;
}

// Green where nobody is expected to be met, over yellow to red.
function riskColour(risk) {
  const hue = 130 * (1 - Math.min(1, Math.max(0, risk)));
  return new Color(`hsl(${Math.round(hue)}, 80%, 45%)`);
}

function build() {
  for (const panel of PANELS) {
    const scene = scenes[panel] = new Scene(), mine = layers[panel] = { boxes: [], candidates: new Group(), ego: [] };
    scene.add(new AmbientLight(0xffffff, 1.9));
    const sun = new DirectionalLight(0xffffff, 1.6);
    sun.position.set(-20, 30, 60);
    scene.add(sun);
    for (let step = 0; step < seconds.length; step++) {
      const group = new Group(), ego = new Group();
      data.boxes[step].forEach(one => group.add(box(one, 0x111111)));
      const body = new Mesh(new BoxGeometry(...data.panels[panel].ego[step].slice(3, 6)), new MeshLambertMaterial({ color: 0x1b84d6 }));
      const [x, y, z, , , , yaw] = data.panels[panel].ego[step];
      body.position.set(x, y, z);
      body.rotation.z = yaw;
      ego.add(body);
      mine.boxes.push(group);
      mine.ego.push(ego);
      scene.add(group, ego);
    }
    data.candidates.forEach((one, k) => {
      const chosen = k === data.chosen, colour = riskColour(one.risk), last = one.points[one.points.length - 1];
      mine.candidates.add(ribbon(one.points, chosen ? 1.3 : 0.3, colour, chosen ? 0.75 : 0.5, chosen ? 2 : 3));
      mine.candidates.add(end(last, chosen ? 0.8 : 0.4, colour, chosen ? 3 : 4));
    });
    if (data.path.length) {
      mine.candidates.add(ribbon(data.path, 0.22, 0x000000, 0.9, 5), end(data.path[data.path.length - 1], 0.35, 0x000000, 5));
    }
    scene.add(mine.candidates);
  }
}

// ---------------------------------------------------------------- how it is looked at

const canvas = $("canvas"), renderer = new WebGLRenderer({ canvas, antialias: true, preserveDrawingBuffer: true });
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
  camera.position.set(-36 * reach, 0, 38 * reach);
  controls.target.set(8, 0, 0);
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
  panels.forEach((panel, k) => {
    const w = across ? width / panels.length : width, h = across ? height : height / panels.length;
    const left = across ? k * w : 0, bottom = across ? 0 : (panels.length - 1 - k) * h;
    const scene = scenes[panel];
    scene.background = new Color(dark.matches ? 0x171b21 : 0xe9edf2);
    for (const child of [...scene.children]) if (child.userData.grid) scene.remove(child);
    const group = voxels(panel, state.step);
    group.userData.grid = true;
    for (const mesh of group.children) mesh.visible = shown[mesh.userData.kind];
    scene.add(group);
    layers[panel].boxes.forEach((one, step) => { one.visible = shown.boxes && step === state.step; });
    layers[panel].ego.forEach((one, step) => { one.visible = step === state.step; });
    layers[panel].candidates.visible = shown.candidates;
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
  state, shown, go, look, toggle,
  counts: panel => Object.fromEntries(voxels(panel, state.step).children.map(mesh => [mesh.userData.kind, mesh.count])),
};
document.documentElement.dataset.ready = "yes";
