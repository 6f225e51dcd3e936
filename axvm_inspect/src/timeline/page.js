'use strict';
// The page of a timeline: lanes on a canvas, tables below it. Words of the guest become text, never markup.
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const canvas = byId('view'), paint = canvas.getContext('2d');
const LEFT = 92, AXIS = 22, ROW = 34, ROWS_OF_QUEUE = 4, MARKS = 16, PHASES = data.phases.length ? 24 : 0;

function told(nanos) {
  if (nanos < 1e3) return Math.round(nanos) + ' ns';
  if (nanos < 1e6) return (nanos / 1e3).toFixed(1) + ' us';
  if (nanos < 1e9) return (nanos / 1e6).toFixed(2) + ' ms';
  return (nanos / 1e9).toFixed(3) + ' s';
}

// Lanes: exits are [time since the one before, duration, name, reason] in one flat list, requests have four times.
const lanes = data.lanes.map((lane) => {
  const count = lane.exits.length / 4;
  const at = new Float64Array(count), took = new Float64Array(count);
  const name = new Uint32Array(count), reason = new Uint32Array(count);
  let now = 0;
  for (let n = 0; n < count; n++) {
    now += lane.exits[4 * n];
    at[n] = now;
    took[n] = lane.exits[4 * n + 1];
    name[n] = lane.exits[4 * n + 2];
    reason[n] = lane.exits[4 * n + 3];
  }
  lane.exits = null;
  // A row for each request, unless too many overlap.
  const ends = new Array(ROWS_OF_QUEUE).fill(-1);
  for (const request of lane.requests) {
    let row = ends.findIndex((end) => end <= request[1]);
    if (row < 0) row = ROWS_OF_QUEUE - 1;
    ends[row] = request[2];
    request.push(row);
  }
  return { title: lane.name, at, took, name, reason, requests: lane.requests };
}).filter((lane) => lane.at.length || lane.requests.length);
// The program, the vCPUs by number, and the queues as they came.
const rank = (lane) => (lane.title === 'axvm' ? -2 : lane.title.startsWith('vcpu') ? -1 : 0);
const number = (lane) => (rank(lane) === -1 ? Number(lane.title.slice(4)) : 0);
lanes.sort((a, b) => rank(a) - rank(b) || number(a) - number(b));
const reasons = data.reasons;
const colour = (reason) => `--c${reason % 8}`;
let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = {};
  for (const name of ['ground', 'ink', 'soft', 'line', 'band', 'mark', 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7']) {
    colours['--' + name] = style.getPropertyValue('--' + name).trim();
  }
}

const END = Math.max(data.end, 1);
let from = 0, to = END, width = 1, picked = { lane: 0, event: -1 }, asked = false;
const tops = [];
let height = AXIS + MARKS + PHASES;
for (const lane of lanes) {
  tops.push(height);
  height += ROW + 8;
}
height += 4;

// The first of a sorted list that is not below a time.
function first(list, time, key) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(list[middle]) < time) low = middle + 1; else high = middle;
  }
  return low;
}
const same = (x) => x;
const placeOf = (time) => LEFT + (time - from) / (to - from) * (width - LEFT);
const timeAt = (x) => from + (x - LEFT) / (width - LEFT) * (to - from);

function show(begin, end) {
  const span = Math.min(Math.max(end - begin, 100), END);
  from = Math.min(Math.max(begin, 0), END - span);
  to = from + span;
  draw();
}
function draw() {
  if (!asked) {
    asked = true;
    requestAnimationFrame(() => { asked = false; drawNow(); });
  }
}

function drawNow() {
  const scale = window.devicePixelRatio || 1;
  width = canvas.clientWidth;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = height + 'px';
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  paint.fillStyle = colours['--ground'];
  paint.fillRect(0, 0, width, height);
  paint.font = '12px system-ui, sans-serif';
  paint.textBaseline = 'middle';
  drawAxis();
  lanes.forEach((lane, n) => {
    paint.fillStyle = colours['--band'];
    paint.fillRect(LEFT, tops[n], width - LEFT, ROW);
    paint.fillStyle = n === picked.lane ? colours['--c0'] : colours['--ink'];
    paint.fillText(lane.title, 4, tops[n] + ROW / 2, LEFT - 8);
    drawExits(lane, tops[n]);
    drawRequests(lane, tops[n]);
  });
  drawMarks();
  drawPhases();
}

function drawAxis() {
  const span = to - from, rough = span / Math.max(1, (width - LEFT) / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((step) => step >= rough);
  paint.fillStyle = colours['--soft'];
  paint.strokeStyle = colours['--line'];
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
    const x = Math.round(placeOf(time)) + 0.5;
    paint.beginPath();
    paint.moveTo(x, AXIS);
    paint.lineTo(x, height);
    paint.stroke();
    const words = told(time);
    if (x + 3 + paint.measureText(words).width <= width) paint.fillText(words, x + 3, AXIS / 2);
  }
}

// Few exits are bars; many are counted by the pixel, and each pixel shows its reasons.
function drawExits(lane, top) {
  const begin = Math.max(0, first(lane.at, from, same) - 1), end = first(lane.at, to, same);
  const perNano = (width - LEFT) / (to - from);
  if (end - begin <= 2 * width) {
    for (let n = begin; n < end; n++) {
      const x = placeOf(lane.at[n]), long = Math.max(1, lane.took[n] * perNano);
      if (x + long < LEFT) continue;
      const start = Math.max(x, LEFT);
      paint.fillStyle = colours[colour(lane.reason[n])];
      paint.fillRect(start, top + 2, Math.max(1, x + long - start), ROW - 4);
      if (long > 46) inside(data.names[lane.name[n]], start, x + long, top + ROW / 2);
    }
    return;
  }
  const columns = Math.ceil(width - LEFT), kinds = reasons.length;
  const counts = new Uint32Array(columns * kinds);
  let most = 1;
  for (let n = begin; n < end; n++) {
    const column = ((lane.at[n] - from) * perNano) | 0;
    if (column >= 0 && column < columns) counts[column * kinds + lane.reason[n]]++;
  }
  const sums = new Uint32Array(columns);
  for (let column = 0; column < columns; column++) {
    for (let kind = 0; kind < kinds; kind++) sums[column] += counts[column * kinds + kind];
    most = Math.max(most, sums[column]);
  }
  for (let column = 0; column < columns; column++) {
    if (!sums[column]) continue;
    // A single one still shows.
    const full = (ROW - 4) * (0.25 + 0.75 * Math.log1p(sums[column]) / Math.log1p(most));
    let y = top + ROW - 2;
    for (let kind = 0; kind < kinds; kind++) {
      const part = counts[column * kinds + kind] / sums[column] * full;
      if (!part) continue;
      paint.fillStyle = colours[colour(kind)];
      paint.fillRect(LEFT + column, y - part, 1, part);
      y -= part;
    }
  }
}

// A request: kick -> pop, pop to completion as a bar, completion -> interrupt.
function drawRequests(lane, top) {
  const list = lane.requests;
  if (!list.length) return;
  // Long ones that began before the view are found among those just before it.
  const begin = Math.max(0, first(list, from, (r) => r[1]) - 64), end = first(list, to, (r) => r[1]);
  const thin = (ROW - 4) / ROWS_OF_QUEUE, withArrows = end - begin < 600;
  let last = [-1, -1, -1, -1];
  for (let n = begin; n < end; n++) {
    const [kicked, popped, completed, toldAt, row] = list[n];
    if (placeOf(completed) < LEFT) continue;
    const x = Math.max(placeOf(popped), LEFT), x2 = Math.max(placeOf(completed), x + 1), y = top + 2 + row * thin;
    if (x2 <= last[row]) continue;
    last[row] = x2;
    paint.fillStyle = colours['--c2'];
    paint.fillRect(x, y, x2 - x, thin - 1);
    if (withArrows) {
      arrow(placeOf(kicked), x, y + thin / 2, colours['--c1']);
      if (toldAt) arrow(x2, placeOf(toldAt), y + thin / 2, colours['--c3']);
    }
  }
}
function arrow(x, x2, y, ink) {
  x = Math.max(x, LEFT);
  if (x2 - x < 4) return;
  paint.strokeStyle = paint.fillStyle = ink;
  paint.beginPath();
  paint.moveTo(x, y);
  paint.lineTo(x2, y);
  paint.stroke();
  paint.beginPath();
  paint.moveTo(x2, y);
  paint.lineTo(x2 - 5, y - 3);
  paint.lineTo(x2 - 5, y + 3);
  paint.fill();
}

function drawMarks() {
  let last = -9;
  paint.fillStyle = colours['--mark'];
  for (let n = first(data.marks, from, (m) => m[0]); n < data.marks.length && data.marks[n][0] <= to; n++) {
    const x = placeOf(data.marks[n][0]);
    if (x - last < 3) continue;
    last = x;
    paint.beginPath();
    paint.moveTo(x, AXIS + MARKS - 4);
    paint.lineTo(x - 4, AXIS + 4);
    paint.lineTo(x + 4, AXIS + 4);
    paint.fill();
  }
}

// The phases of the boot, each with its name where there is room.
function drawPhases() {
  if (!PHASES) return;
  const top = AXIS + MARKS;
  paint.fillStyle = colours['--ink'];
  paint.fillText('boot', 4, top + 9);
  data.phases.forEach(([what, begin, end], n) => {
    const x = Math.max(placeOf(begin), LEFT), x2 = Math.min(placeOf(end), width);
    if (x2 <= x) return;
    paint.fillStyle = colours[colour(n)];
    paint.fillRect(x, top, Math.max(1, x2 - x - 1), 18);
    inside(what, x, x2, top + 9);
  });
}
// Words in a bar, as far as there is room.
function inside(words, x, x2, y) {
  if (x2 - x < 30) return;
  paint.save();
  paint.beginPath();
  paint.rect(x, y - ROW / 2, x2 - x - 3, ROW);
  paint.clip();
  paint.fillStyle = colours['--ground'];
  paint.fillText(words, x + 4, y);
  paint.restore();
}

// What is told of an event.
function describe(lane, event) {
  if (lane.requests.length) {
    const [kicked, popped, completed, toldAt] = lane.requests[event];
    const tail = toldAt ? `, interrupt after ${told(toldAt - completed)}` : ', no interrupt wanted';
    return `${lane.title}: request at ${told(popped)}: popped ${told(popped - kicked)} after its kick, ` +
      `completed in ${told(completed - popped)}${tail}`;
  }
  const after = event > 0 ? `, ${told(lane.at[event] - lane.at[event - 1] - lane.took[event - 1])} after the one before` : '';
  return `${lane.title}: ${data.names[lane.name[event]]} (${reasons[lane.reason[event]]}) at ${told(lane.at[event])}, ` +
    `${told(lane.took[event])} in AxVM${after}`;
}
const timeOf = (lane, n) => (lane.requests.length ? lane.requests[n][1] : lane.at[n]);
const countOf = (lane) => (lane.requests.length || lane.at.length);
function nearest(lane, time) {
  const list = lane.requests.length ? lane.requests : lane.at;
  const n = first(list, time, lane.requests.length ? (r) => r[1] : same);
  if (n >= countOf(lane)) return n - 1;
  if (n > 0 && time - timeOf(lane, n - 1) < timeOf(lane, n) - time) return n - 1;
  return n;
}
function tell(words) {
  byId('detail').textContent = words;
}
function pick(event, centred) {
  const lane = lanes[picked.lane];
  if (!lane || event < 0 || event >= countOf(lane)) return;
  picked.event = event;
  tell(describe(lane, event));
  const at = timeOf(lane, event), span = to - from;
  if (centred && (at < from || at > to)) show(at - span / 2, at + span / 2); else draw();
}

function zoom(factor, around) {
  const span = (to - from) * factor;
  const part = (around - from) / (to - from);
  show(around - part * span, around - part * span + span);
}
function key(name) {
  const span = to - from, middle = from + span / 2, lane = lanes[picked.lane];
  const here = () => (picked.event >= 0 ? picked.event : nearest(lane, middle));
  const keys = {
    'ArrowLeft': () => show(from - span / 8, to - span / 8), 'ArrowRight': () => show(from + span / 8, to + span / 8),
    '+': () => zoom(0.5, middle), '=': () => zoom(0.5, middle), '-': () => zoom(2, middle), '0': () => show(0, END),
    'j': () => { picked = { lane: Math.min(picked.lane + 1, lanes.length - 1), event: -1 }; draw(); },
    'k': () => { picked = { lane: Math.max(picked.lane - 1, 0), event: -1 }; draw(); },
    'n': () => lane && pick(here() + 1, true), 'p': () => lane && pick(here() - 1, true),
  };
  keys['ArrowDown'] = keys.j;
  keys['ArrowUp'] = keys.k;
  if (!keys[name]) return false;
  keys[name]();
  return true;
}
canvas.addEventListener('keydown', (event) => {
  if (!event.ctrlKey && !event.altKey && !event.metaKey && key(event.key)) event.preventDefault();
});
document.querySelectorAll('button[data-key]').forEach((button) => button.addEventListener('click', () => key(button.dataset.key)));
canvas.addEventListener('wheel', (event) => {
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(Math.max(event.offsetX, LEFT)));
}, { passive: false });
let drag = null;
canvas.addEventListener('pointerdown', (event) => {
  drag = { x: event.offsetX, from, to };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener('pointerup', () => { drag = null; });
canvas.addEventListener('pointermove', (event) => {
  if (drag) {
    const moved = (drag.x - event.offsetX) / (width - LEFT) * (drag.to - drag.from);
    return show(drag.from + moved, drag.to + moved);
  }
  const time = timeAt(event.offsetX);
  if (event.offsetY < AXIS + MARKS) {
    const near = first(data.marks, time - (to - from) / width * 4, (m) => m[0]), mark = data.marks[near];
    if (mark && Math.abs(placeOf(mark[0]) - event.offsetX) < 6) tell(`${mark[1]} at ${told(mark[0])}: ${mark[2]}`);
    return;
  }
  const lane = tops.findIndex((top) => event.offsetY >= top && event.offsetY < top + ROW);
  if (lane < 0 || event.offsetX < LEFT) return;
  picked.lane = lane;
  pick(nearest(lanes[lane], time), false);
});

// Tables.
function row(table, cells, act) {
  const line = table.insertRow();
  for (const cell of cells) {
    const place = line.insertCell();
    if (cell instanceof Node) place.append(cell); else place.textContent = cell;
  }
  if (act) {
    line.tabIndex = 0;
    line.addEventListener('click', act);
    line.addEventListener('keydown', (event) => { if (event.key === 'Enter') act(); });
  }
  return line;
}
function head(table, words) {
  const line = table.createTHead().insertRow();
  for (const word of words) {
    const cell = document.createElement('th');
    cell.scope = 'col';
    cell.textContent = word;
    line.append(cell);
  }
  table.createTBody();
}
function gauge(line, begin, part, ink = 'c0') {
  const cell = line.insertCell(), bar = document.createElement('div');
  cell.className = 'gauge';
  bar.style.background = `var(--${ink})`;
  bar.style.left = `${begin * 100}%`;
  bar.style.width = `${Math.min(part, 1 - begin) * 100}%`;
  cell.append(bar);
}
function look(begin, end) {
  const margin = (end - begin) * 0.02;
  show(begin - margin, end + margin);
  canvas.scrollIntoView({ block: 'nearest' });
}
head(byId('boot'), ['phase', 'at', 'took', '']);
data.phases.forEach(([what, begin, end], n) => {
  const line = row(byId('boot').tBodies[0], [what, told(begin), told(end - begin)], () => look(begin, end));
  gauge(line, begin / END, (end - begin) / END, 'c' + n % 8);
});
head(byId('silent'), ['silent for', 'at', 'after the kernel\u2019s line']);
for (const [at, took, after] of data.silences) {
  row(byId('silent').tBodies[0], [told(took), told(at), after], () => look(at, at + took));
}
for (const [saves, words] of data.advice) {
  const item = document.createElement('li'), much = document.createElement('b');
  much.textContent = `up to ${told(saves)}: `;
  item.append(much, words);
  byId('advice').append(item);
}
for (const [place, there] of [['boot', data.phases], ['silent', data.silences], ['advice', data.advice], ['functions', data.functions]]) {
  byId(place).closest('section').hidden = !there.length;
}
// Exits by time or by number, at the press of a button.
function exitsBy(column) {
  const table = byId('exits'), whole = data.rows.reduce((sum, r) => sum + r[column], 0) || 1;
  table.replaceChildren();
  head(table, ['register', 'count', 'total', 'p50', 'p99', '']);
  for (const [name, reason, count, total, p50, p99] of data.rows.slice().sort((a, b) => b[column] - a[column]).slice(0, 20)) {
    const words = [`${data.names[name]} (${reasons[reason]})`, count, told(total), told(p50), told(p99)];
    gauge(row(table.tBodies[0], words), 0, (column === 2 ? count : total) / whole, 'c' + reason % 8);
  }
  document.querySelectorAll('button[data-column]').forEach((button) => {
    button.setAttribute('aria-pressed', Number(button.dataset.column) === column);
  });
}
exitsBy(3);
document.querySelectorAll('button[data-column]').forEach((button) => {
  button.addEventListener('click', () => exitsBy(Number(button.dataset.column)));
});
head(byId('functions'), ['function', 'mostly', 'count', 'total', '']);
const exitsOfFunctions = data.functions.reduce((sum, f) => sum + f[2], 0);
for (const [name, register, count, total] of data.functions) {
  const words = [name, data.names[register], count, told(total)];
  gauge(row(byId('functions').tBodies[0], words), 0, count / exitsOfFunctions);
}
for (const lane of lanes.filter((lane) => lane.requests.length)) {
  const times = lane.requests.map((r) => r[2] - r[1]).sort((a, b) => a - b);
  const title = document.createElement('p'), table = document.createElement('table'), bins = new Map();
  const at = (part) => told(times[Math.floor((times.length - 1) * part)]);
  title.textContent = `${lane.title}: ${times.length}, p50 ${at(0.5)}, p90 ${at(0.9)}, p99 ${at(0.99)}, longest ${at(1)}`;
  head(table, ['up to', 'requests', '']);
  for (const time of times) {
    const bin = Math.floor(Math.log2(Math.max(time, 1)));
    bins.set(bin, (bins.get(bin) || 0) + 1);
  }
  const most = Math.max(...bins.values());
  for (const [bin, count] of bins) gauge(row(table.tBodies[0], [told(2 ** (bin + 1)), count]), 0, count / most);
  byId('requests').append(title, table);
}
const printed = byId('console').firstElementChild.createTBody();
for (const [at, kind, words] of data.marks.filter((m) => m[1] === 'console').slice(0, 5000)) {
  row(printed, [told(at), words], () => look(at - 1e6, at + 1e6));
}
for (let n = 0; n < reasons.length; n++) {
  const entry = document.createElement('span'), box = document.createElement('i');
  box.style.background = `var(${colour(n)})`;
  entry.append(box, reasons[n]);
  byId('legend').append(entry);
}
byId('title').textContent = data.title;
document.title = `${data.title}: AxVM timeline`;
byId('about').textContent = data.about;
readColours();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { readColours(); draw(); });
new ResizeObserver(draw).observe(canvas);
draw();
