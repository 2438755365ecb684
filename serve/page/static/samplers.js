// The list of samplers, and the plot of the noise levels that one walks through.

import {json} from "./api.js";

const $ = id => document.getElementById(id);
const MOST_DOTS = 60;
let asked = 0;

/** Fill the list with the samplers of a model; returns what the sides of its images are multiples of. */
export async function list(model) {
  const told = await json(`/v1/samplers?${new URLSearchParams({model})}`), chosen = $("sampler").value;
  const own = new Option(`the model's own (${told.default})`, "");
  $("sampler").replaceChildren(own, ...told.samplers.map(name => new Option(name)));
  $("sampler").value = told.samplers.includes(chosen) ? chosen : "";
  $("sampler").dataset.own = told.default;
  return told.multiple;
}

/** Plot the sampler that is chosen. An answer that a later question has overtaken is left. */
export async function plot(model) {
  const name = $("sampler").value || $("sampler").dataset.own, steps = $("steps").value, turn = ++asked;
  if (!name || !$("steps").checkValidity()) return;
  let plan;
  try {
    ({plan} = await json(`/v1/samplers?${new URLSearchParams({model, name, steps})}`));
  } catch (error) {
    if (turn === asked) show([], error.message);
    return;
  }
  if (turn !== asked) return;
  const levels = plan.sigmas.filter(level => level > 0), rows = plan.timesteps.length;
  const [most, least] = [Math.max(...levels), Math.min(...levels)].map(level => Number(level.toPrecision(3)));
  show(plan.sigmas, `noise level ${most} to ${least} in ${rows} ${rows === 1 ? "row" : "rows"}, logarithmic`);
}

/** Draw noise levels over their rows, on a logarithmic axis: a line, and a dot for each row. */
function show(sigmas, text) {
  const seen = sigmas.map((level, row) => [row, Math.log(level)]).filter(([, log]) => Number.isFinite(log));
  const logs = seen.map(([, log]) => log), top = Math.max(...logs), range = top - Math.min(...logs) || 1;
  const last = Math.max(1, sigmas.length - 1);
  const points = seen.map(([row, log]) => `${(100 * row / last).toFixed(2)} ${(4 + 92 * (top - log) / range).toFixed(2)}`);
  const dots = points.length <= MOST_DOTS ? points.map(point => `M${point}h0`).join("") : "";
  $("plot").replaceChildren(drawn("polyline", "points", points.join(" ")), drawn("path", "d", dots));
  $("plot").setAttribute("aria-label", text);
  $("plot-text").textContent = text;
}

function drawn(shape, attribute, value) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", shape);
  made.setAttribute(attribute, value);
  return made;
}
