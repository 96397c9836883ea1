// Voxels as instanced faces: only faces that are open to the air, runs of equal ones joined, corners darkened where voxels meet.
import { BufferAttribute, DoubleSide, GLSL3, InstancedBufferAttribute, InstancedBufferGeometry, RawShaderMaterial, Vector3 } from "three";

// Directions of faces: 0 up, 1 +x, 2 -x, 3 +y, 4 -y. `u` is the axis along which runs are joined. Nobody looks from below.
const FACES = [
  { n: [0, 0, 1], u: [0, 1, 0], v: [1, 0, 0] },
  { n: [1, 0, 0], u: [0, 1, 0], v: [0, 0, 1] },
  { n: [-1, 0, 0], u: [0, 1, 0], v: [0, 0, 1] },
  { n: [0, 1, 0], u: [1, 0, 0], v: [0, 0, 1] },
  { n: [0, -1, 0], u: [1, 0, 0], v: [0, 0, 1] },
];
const LONGEST = 255;

/** Faces of a grid of labels in the order x, y, z: `place` holds x, y, z, direction of each, `look` its label, length and corners.
    Labels from `free` on are air, and so are those that are not `shown`. */
export function faces(labels, [X, Y, Z], free, shown) {
  // one cell of air around the grid, so that no neighbour has to be asked whether it exists
  const W = Z + 2, L = (Y + 2) * W;
  const taken = new Uint8Array(L * (X + 2)), label = new Uint8Array(taken.length);
  for (let x = 0, i = 0; x < X; x++)
    for (let y = 0; y < Y; y++)
      for (let z = 0, at = (x + 1) * L + (y + 1) * W + 1; z < Z; z++, i++, at++)
        if (labels[i] < free && shown(labels[i])) {
          label[at] = labels[i];
          taken[at] = 1;
        }
  const place = [], look = [], step = ([x, y, z]) => x * L + y * W + z, size = [X, Y, Z];
  FACES.forEach((face, direction) => {
    const n = step(face.n), u = step(face.u), v = step(face.v);
    const along = face.u.indexOf(1), others = [0, 1, 2].filter((axis) => axis !== along);
    const unit = [L, W, 1], c = [0, 0, 0];
    for (let a = 0; a < size[others[1]]; a++)
      for (let b = 0; b < size[others[0]]; b++) {
        let open = 0, openKey = -1;
        const base = L + W + 1 + a * unit[others[1]] + b * unit[others[0]];
        for (let k = 0; k < size[along]; k++) {
          const at = base + k * unit[along];
          if (!taken[at] || taken[at + n]) { openKey = -1; continue; }
          const o = at + n;
          const pu = taken[o + u], mu = taken[o - u], pv = taken[o + v], mv = taken[o - v];
          const c0 = corner(mu, mv, taken[o - u - v]), c1 = corner(pu, mv, taken[o + u - v]);
          const c2 = corner(mu, pv, taken[o - u + v]), c3 = corner(pu, pv, taken[o + u + v]);
          const corners = c0 | (c1 << 2) | (c2 << 4) | (c3 << 6), key = label[at] | (corners << 8);
          if (key === openKey && c0 === c1 && c2 === c3 && look[open + 1] < LONGEST) { look[open + 1]++; continue; }
          c[along] = k; c[others[0]] = b; c[others[1]] = a;
          place.push(c[0], c[1], c[2], direction);
          open = look.length; openKey = key;
          look.push(label[at], 1, corners, 0);
        }
      }
  });
  return { place: Uint16Array.from(place), look: Uint8Array.from(look), count: look.length / 4 };
}

/** How light a corner is, 0 to 3, by the three cells in front of its face that touch it. */
function corner(a, b, c) {
  return a && b ? 0 : 3 - a - b - c;
}

/** The faces as a geometry of one instanced square. */
export function geometryOf({ place, look, count }) {
  const made = new InstancedBufferGeometry();
  made.setAttribute("position", new BufferAttribute(new Float32Array([0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0]), 3));
  made.setIndex([0, 1, 2, 2, 1, 3]);
  made.setAttribute("place", new InstancedBufferAttribute(place, 4));
  made.setAttribute("look", new InstancedBufferAttribute(look, 4));
  made.instanceCount = count;
  return made;
}

/** What voxels are painted with: their own colours, lit from above, with thin edges and dark corners. */
export function voxelMaterial(lower, voxel, palette) {
  return new RawShaderMaterial({
    glslVersion: GLSL3,
    side: DoubleSide,
    uniforms: {
      palette: { value: palette },
      lower: { value: new Vector3(...lower) },
      voxel: { value: voxel },
      haze: { value: new Vector3(1, 1, 1) },
      near: { value: 60 },
      light: { value: 1 },
    },
    vertexShader: `
      precision highp float;
      uniform mat4 modelMatrix, viewMatrix, projectionMatrix;
      uniform vec3 lower, palette[18];
      uniform float voxel;
      in vec3 position; in vec4 place, look;
      out vec2 cell, part; flat out vec4 corners; out vec3 colour; flat out vec3 facing; out float far;
      const vec3 N[5] = vec3[5](vec3(0,0,1), vec3(1,0,0), vec3(-1,0,0), vec3(0,1,0), vec3(0,-1,0));
      void main() {
        int d = int(place.w), c = int(look.z);
        vec3 u = d < 3 ? vec3(0,1,0) : vec3(1,0,0), v = d == 0 ? vec3(1,0,0) : vec3(0,0,1);
        part = position.xy;
        cell = vec2(position.x * look.y, position.y);
        vec2 over = (position.xy - 0.5) * 0.008; // no gap where a long face ends at the middle of another
        vec3 at = place.xyz + max(N[d], 0.0) + u * (cell.x + over.x) + v * (cell.y + over.y);
        corners = vec4(c & 3, (c >> 2) & 3, (c >> 4) & 3, (c >> 6) & 3) / 3.0;
        facing = mat3(modelMatrix) * N[d];
        colour = palette[int(look.x)];
        vec4 seen = viewMatrix * (modelMatrix * vec4(lower + at * voxel, 1.0));
        far = -seen.z;
        gl_Position = projectionMatrix * seen;
      }`,
    fragmentShader: `
      precision highp float;
      uniform vec3 haze; uniform float near, light;
      in vec2 cell, part; flat in vec4 corners; in vec3 colour; flat in vec3 facing; in float far;
      out vec4 made;
      void main() {
        float open = mix(mix(corners.x, corners.y, part.x), mix(corners.z, corners.w, part.x), part.y);
        float sun = 0.70 + 0.30 * facing.z + 0.10 * facing.y - 0.07 * facing.x;
        vec2 width = fwidth(cell), edge = min(fract(cell), 1.0 - fract(cell));
        vec2 line = 1.0 - smoothstep(vec2(0.0), width * 1.1 + 0.018, edge);
        float fade = clamp(0.34 - max(width.x, width.y), 0.0, 0.34);
        float ink = max(line.x, line.y) * fade;
        vec3 lit = colour * sun * light * mix(0.52, 1.0, open) * (1.0 - 0.55 * ink);
        made = vec4(mix(lit, haze, clamp((far - near) / 200.0, 0.0, 0.45)), 1.0);
      }`,
  });
}
