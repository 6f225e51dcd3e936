'use strict';
// Behind a page's own script: looks at it as a user does, and leaves what it has seen in the document, as JSON.
const wait = (time) => new Promise((done) => setTimeout(done, time));
const press = (name) => canvas.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true }));
const view = () => ({ from, to, lane: picked.lane, told: byId('detail').textContent });
const rowsOf = (place) => [...place.querySelectorAll('tbody tr')].map((line) => [...line.cells].map((cell) => cell.textContent));

// Points of a lane that are not its ground.
function painted(lane) {
  const scale = window.devicePixelRatio || 1, at = (place) => Math.round(place * scale);
  const { data } = paint.getImageData(at(LEFT), at(tops[lane] + 1), at(width - LEFT), at(ROW - 2));
  let count = 0;
  for (let n = 4; n < data.length; n += 4) if (data[n] !== data[0] || data[n + 1] !== data[1] || data[n + 2] !== data[2]) count++;
  return count;
}
// Colours of the line that shows the boot's phases, but for words in it.
function phases() {
  const scale = window.devicePixelRatio || 1;
  const { data } = paint.getImageData(LEFT * scale, (AXIS + MARKS + 1) * scale, (width - LEFT) * scale, 1);
  const found = new Set();
  for (let n = 0; n < data.length; n += 4) found.add(data.slice(n, n + 3).join());
  return found.size;
}
// How bright a colour is, 0 to 1.
function bright(words) {
  const [red, green, blue] = words.match(/\d+/g).map((part) => part / 255);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
async function used() {
  const steps = { start: view() };
  for (const [step, keys] of Object.entries({
    closer: '+', right: ['ArrowRight'], down: 'j', next: 'n', after: 'n', before: 'p', up: 'k', whole: '0',
  })) {
    [...keys].forEach(press);
    await wait(100);
    steps[step] = view();
  }
  const phase = byId('boot').tBodies[0].rows[0];
  phase.focus();
  steps.focused = document.activeElement === phase;
  phase.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
  steps.phase = view();
  press('0');
  const wheel = { deltaY: -100, clientX: canvas.getBoundingClientRect().left + LEFT + 50, cancelable: true };
  canvas.dispatchEvent(new WheelEvent('wheel', wheel));
  steps.wheel = view();
  press('0');
  document.querySelector('button[data-key="+"]').click();
  steps.button = view();
  press('0');
  const counts = () => rowsOf(byId('exits')).map((cells) => Number(cells[1]));
  document.querySelector('button[data-column="2"]').click();
  steps.byNumber = counts();
  return steps;
}
function seen() {
  const style = getComputedStyle(document.body);
  return {
    ready: performance.now(), faults, phases: phases(), end: END, ground: bright(style.backgroundColor), ink: bright(style.color),
    wide: document.documentElement.scrollWidth - window.innerWidth,
    lanes: lanes.map((lane, n) => ({ title: lane.title, events: countOf(lane), painted: painted(n) })),
    boot: rowsOf(byId('boot')), advice: byId('advice').textContent, exits: rowsOf(byId('exits')), requests: rowsOf(byId('requests')),
    printed: rowsOf(byId('console')), about: byId('about').textContent, legend: byId('legend').textContent,
  };
}
function leave(found) {
  const place = document.createElement('pre');
  place.id = 'seen';
  place.textContent = JSON.stringify(found);
  document.body.append(place);
}
async function look_and_use() {
  for (let n = 0; n < 100 && !lanes.some((_, lane) => painted(lane)); n++) await wait(50);
  const found = seen();
  try {
    found.steps = await used();
  } catch (error) {
    faults.push(String(error));
  }
  leave(found);
}
function draw_at_once() {
  drawNow();
  const found = seen(), before = performance.now();
  press('+');
  drawNow();
  found.redrawn = performance.now() - before;
  leave(found);
}
