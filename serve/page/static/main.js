// The page: models, drawing, and what belongs to neither.

import {blob, events, json} from "./api.js";
import {fill, request, resize} from "./form.js";
import {add} from "./gallery.js";
import {parametersOf} from "./png.js";
import {list, plot} from "./samplers.js";
import {startFields, startFrom, takeFiles} from "./start.js";

const $ = id => document.getElementById(id);
const complain = text => $("alert").textContent = text;
const say = text => $("status").textContent = text;
let models = [], drawing = null;  // the id of the request that runs; "" until it has one

/** Show an image on the stage. */
function show(url, alt = "") {
  Object.assign($("preview"), {src: url, alt, hidden: false});
  $("empty").hidden = true;
}
$("preview").addEventListener("load", ({target}) => target.classList.toggle("small", target.naturalWidth < 256));

async function chooseModel() {
  const model = models.find(each => each.id === $("model").value), {certificate} = model;
  const [kind, text] = !certificate ? ["", "no certificate"]
    : certificate.within ? ["within", "✓ within tolerance"] : ["past", `✗ ${certificate.failures[0] ?? "past tolerance"}`];
  Object.assign($("verdict"), {className: `verdict ${kind}`, textContent: text, hidden: false});
  $("verdict").title = certificate?.failures.join("\n") ?? "";
  resize(model.size, await list(model.id), model.guidance_scale);
  await plot(model.id);
}

/** Fill the form with an image's parameters, by the model that drew it where the server has it. */
async function reuse(parameters) {
  if (parameters.bundle !== $("model").value && models.some(model => model.id === parameters.bundle)) {
    $("model").value = parameters.bundle;
    await chooseModel();
  }
  fill(parameters);
  say("The form has the settings of the image.");
}

/** Draw what the form says, and show each row. */
async function draw() {
  const body = {...request(), ...startFields()};
  drawing = "";
  complain("");
  say("Sending the request.");
  busy(true);
  try {
    const accepted = await json("/v1/requests", {method: "POST", body});
    drawing = accepted.id;
    let last = accepted;
    for await (const told of events(`/v1/requests/${accepted.id}/events?preview=true`)) {
      if (told.preview) {
        show(`data:image/png;base64,${told.preview}`, "What the row predicts");
        continue;
      }
      last = told;
      tell(told);
    }
    if (last.stage === "done") await keep(last, body);
    else if (last.stage === "cancelled") say("Cancelled.");
    else throw new Error(last.error?.message ?? "The connection was lost.");
  } catch (error) {
    say("");
    complain(error.message);
  }
  drawing = null;
  busy(false);
}

function busy(on) {
  $("draw").ariaDisabled = on;
  if (!on && document.activeElement === $("cancel")) $("draw").focus();
  $("cancel").disabled = !on;
  $("stage").ariaBusy = on;
  if (!on) {
    $("progress").value = 0;
    $("row").textContent = "";
  }
}

/** Tell how far a request is: every row to the eye, every quarter of them to a screen reader. */
function tell({stage, position, row, rows}) {
  $("progress").max = rows;
  $("progress").value = row;
  if (stage === "waiting") say(position ? `${position} before this one.` : "Next in the queue.");
  else if (stage === "running") say(`Drawing, ${25 * Math.floor(4 * row / rows)} %`);
  if (row) $("row").textContent = `Row ${row} of ${rows}`;
}

/** Fetch the images of a request that is done. */
async function keep({id, images, seeds, seconds}, body) {
  const whole = Object.values(seconds).reduce((sum, each) => sum + each, 0);
  for (const [place, path] of images.entries()) {
    const image = await blob(path), seed = seeds[place];
    const told = {seed, seconds: whole, prompt: body.prompt, name: `${body.model}-${seed}.png`,
      sampler: body.scheduler ?? $("sampler").dataset.own};
    const url = add(image, told, {
      show,
      use: async () => reuse(await parametersOf(image)),
      from: () => startFrom(image).then(() => $("mask").focus()),
    });
    if (!place) show(url, `${body.prompt || "image"}, seed ${seed}`);
  }
  $("again").value = seeds[0];
  $("again").disabled = false;
  say(`${images.length === 1 ? "Done" : `${images.length} images`} in ${whole.toFixed(1)} s.`);
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  if (drawing !== null || !models.length) return;
  $("stage").scrollIntoView({block: "nearest"});
  draw();
});
$("cancel").addEventListener("click", async () => {
  try {
    if (drawing) await json(`/v1/requests/${drawing}`, {method: "DELETE"});
  } catch (error) {
    complain(error.message);
  }
});
addEventListener("pagehide", () => {  // nobody waits any more
  if (drawing) json(`/v1/requests/${drawing}`, {method: "DELETE", keepalive: true}).catch(() => {});
});
$("again").addEventListener("click", ({target}) => $("seed").value = target.value);
$("model").addEventListener("change", () => chooseModel().catch(error => complain(error.message)));
for (const id of ["sampler", "steps"]) $(id).addEventListener("input", () => plot($("model").value));
takeFiles(reuse, complain);

try {
  models = (await json("/v1/models")).data;
  $("model").replaceChildren(...models.map(({id}) => new Option(id)));
  await chooseModel();
} catch (error) {
  complain(error.message);
}
