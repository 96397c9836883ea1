// Boxes, the ego and ways as meshes. Metres, in the ego frame of now: x ahead, y left, z up.
import {
  BoxGeometry, BufferAttribute, BufferGeometry, CircleGeometry, Color, DoubleSide, Group, InstancedMesh, Matrix4, Mesh, MeshBasicMaterial,
  Quaternion, Vector3,
} from "three";

const UNIT = new BoxGeometry(1, 1, 1);
const UP = new Vector3(0, 0, 1);

function placed(x, y, z, yaw = 0, sx = 1, sy = 1, sz = 1) {
  return new Matrix4().compose(new Vector3(x, y, z), new Quaternion().setFromAxisAngle(UP, yaw), new Vector3(sx, sy, sz));
}

/** The twelve edges of boxes as bars, a bar on top that shows their heading, and their faces as a tint.
    `rows` are x, y, z, length, width, height, yaw. */
export function boxes(rows, ink, tinted = ink, thick = 0.08) {
  const made = new Group();
  if (!rows.length) return made;
  const bars = new InstancedMesh(UNIT, new MeshBasicMaterial({ color: ink }), rows.length * 12);
  const tint = new InstancedMesh(UNIT, new MeshBasicMaterial({ color: tinted, transparent: true, opacity: 0.16, depthWrite: false }), rows.length);
  const nose = new InstancedMesh(UNIT, new MeshBasicMaterial({ color: ink }), rows.length);
  rows.forEach(([x, y, z, l, w, h, yaw], i) => {
    const own = placed(x, y, z, yaw), half = [l / 2, w / 2, h / 2];
    let k = 12 * i;
    for (let axis = 0; axis < 3; axis++)
      for (const a of [-1, 1])
        for (const b of [-1, 1]) {
          const at = [0, 0, 0], size = [thick, thick, thick], [p, q] = [0, 1, 2].filter((other) => other !== axis);
          at[p] = a * half[p]; at[q] = b * half[q];
          size[axis] = 2 * half[axis] + thick;
          bars.setMatrixAt(k++, own.clone().multiply(placed(...at, 0, ...size)));
        }
    tint.setMatrixAt(i, placed(x, y, z, yaw, l, w, h));
    nose.setMatrixAt(i, own.clone().multiply(placed(l / 2 - l / 8, 0, h / 2, 0, l / 4, thick, thick)));
  });
  for (const mesh of [bars, tint, nose]) { mesh.frustumCulled = false; made.add(mesh); }
  tint.renderOrder = 2;
  return made;
}

/** The ego's box as a body and a cabin. */
export function ego([x, y, z, l, w, h, yaw]) {
  const made = new Group(), body = new MeshBasicMaterial({ color: "#1f6fd6" }), glass = new MeshBasicMaterial({ color: "#0c2d5c" });
  const low = 0.58 * h, add = (material, along, up, sx, sy, sz) => {
    const part = new Mesh(UNIT, material);
    part.position.set(along, 0, up - h / 2);
    part.scale.set(sx, sy, sz);
    made.add(part);
  };
  add(body, 0, 0.06 + low / 2, l, w, low - 0.1);
  add(glass, -0.08 * l, low + (h - low) / 2, 0.52 * l, 0.86 * w, h - low);
  add(body, -0.08 * l, h, 0.4 * l, 0.78 * w, 0.06);
  made.add(boxes([[0, 0, 0, l, w, h, 0]], "#ffffff", "#1f6fd6", 0.06));
  made.position.set(x, y, z);
  made.rotation.z = yaw;
  return made;
}

/** A path through points, smooth: places, the time in steps, and a unit vector to the left; all `aside` metres to the left of it. */
function smooth(points, aside) {
  const out = [], pieces = 10, last = points.length - 1;
  for (let k = 0; k < last; k++) {
    const [a, b, c, d] = [points[Math.max(0, k - 1)], points[k], points[k + 1], points[Math.min(last, k + 2)]];
    for (let i = k ? 1 : 0; i <= pieces; i++) {
      const t = i / pieces;
      const at = [0, 1].map((j) => 0.5 * (2 * b[j] + (c[j] - a[j]) * t + (2 * a[j] - 5 * b[j] + 4 * c[j] - d[j]) * t * t
        + (3 * b[j] - a[j] - 3 * c[j] + d[j]) * t * t * t));
      out.push({ at, time: k + t });
    }
  }
  let left = [0, 1];
  out.forEach((one, i) => {
    const [f, g] = [out[Math.max(0, i - 1)].at, out[Math.min(out.length - 1, i + 1)].at];
    const dx = g[0] - f[0], dy = g[1] - f[1], long = Math.hypot(dx, dy);
    if (long > 1e-3) left = [-dy / long, dx / long];
    one.left = left;
  });
  for (const one of out) one.at = [0, 1].map((j) => one.at[j] + aside * one.left[j]);
  return out;
}

function ribbon(line, wide, z, keep = () => true) {
  const position = [], index = [];
  line.forEach(({ at, left }, i) => {
    for (const side of [-0.5, 0.5]) position.push(at[0] + side * wide * left[0], at[1] + side * wide * left[1], z);
    if (i && keep(i)) index.push(2 * i - 2, 2 * i - 1, 2 * i, 2 * i, 2 * i - 1, 2 * i + 1);
  });
  const made = new BufferGeometry();
  made.setAttribute("position", new BufferAttribute(new Float32Array(position), 3));
  made.setIndex(index);
  return made;
}

/** A ribbon that shows through what stands before it, faintly. */
function drawn(geometry, color, order) {
  const made = new Group();
  for (const [depthTest, opacity] of [[false, 0.3], [true, 1]]) {
    const mesh = new Mesh(geometry, new MeshBasicMaterial({ color, side: DoubleSide, transparent: true, opacity, depthTest, depthWrite: false }));
    mesh.renderOrder = order + (depthTest ? 0.5 : 0);
    mesh.frustumCulled = false;
    made.add(mesh);
  }
  return made;
}

const DARK = new Color("#10141a"), LIGHT = new Color("#ffffff");
const ORDER = { candidate: 10, chosen: 14, true: 18 };

/** A path as a ribbon on the ground, and a mark on it that `show(step)` moves to where the ego would be then.
    `kind` is candidate, chosen or true; the true one is dashed. `aside`: metres to the left, so that paths of one way are seen one by one. */
export function way(kind, points, colour, ground, aside = 0) {
  const made = new Group(), line = smooth(points, aside), order = ORDER[kind];
  if (kind === "true") {
    const dashes = (i) => i % 5 > 1;
    made.add(drawn(ribbon(line, 0.34, ground + 0.16, dashes), LIGHT, order), drawn(ribbon(line, 0.2, ground + 0.17, dashes), DARK, order + 1));
  } else {
    const [wide, edge, up] = kind === "chosen" ? [0.62, 0.2, 0.12] : [0.17, 0.05, 0.09];
    made.add(drawn(ribbon(line, wide + edge, ground + up), DARK, order), drawn(ribbon(line, wide, ground + up + 0.01), colour, order + 1));
  }
  const size = { candidate: 0.2, chosen: 0.34, true: 0.26 }[kind], mark = new Group();
  for (const [radius, color, up] of [[size + 0.09, DARK, 0], [size, kind === "true" ? LIGHT : colour, 0.01]]) {
    const disc = new Mesh(new CircleGeometry(radius, 24), new MeshBasicMaterial({ color, depthTest: false, transparent: true, side: DoubleSide }));
    disc.position.z = ground + 0.2 + up;
    disc.renderOrder = order + 2 + (up ? 1 : 0);
    mark.add(disc);
  }
  made.add(mark);
  const show = (step) => mark.position.set(...line[Math.min(line.length - 1, step * 10)].at, 0);
  show(0);
  return { group: made, show };
}
