// The form: what it says as a request of the server, and how the parameters of an image fill it.

const $ = id => document.getElementById(id);
// The words that an image's parameters have, by the fields of the form.
const FIELDS = {prompt: "prompt", negative: "negative_prompt", sampler: "scheduler", steps: "steps",
  guidance: "guidance", width: "width", height: "height", seed: "seed", strength: "strength"};
const DEFAULTS = {negative_prompt: "", scheduler: "", steps: 20, guidance: 5, strength: 0.8};
const OTHERS = ["prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3", "prompt_syntax", "true_cfg_scale", "guidance_rescale", "scheduler_settings", "eta",
  "clip_skip", "class_labels", "deep_cache", "loras", "noise",
  "skip_guidance_layers", "skip_layer_guidance_scale", "skip_layer_guidance_start", "skip_layer_guidance_stop"];  // which the form has no fields for: they are sent as the file has them
let more = {};

/** The body of `POST /v1/requests`; a seed that is left open is chosen here, so that it can be told. */
export function request() {
  const body = {
    model: $("model").value,
    prompt: $("prompt").value,
    num_inference_steps: $("steps").valueAsNumber,
    guidance_scale: $("guidance").valueAsNumber,
    width: $("width").valueAsNumber,
    height: $("height").valueAsNumber,
    num_images_per_prompt: $("count").valueAsNumber,
    seed: $("seed").value || String(crypto.getRandomValues(new Uint32Array(1))[0]),
    ...more,
  };
  if ($("negative").value) body.negative_prompt = $("negative").value;
  if ($("sampler").value) body.scheduler = $("sampler").value;
  return body;
}

/** Fill the form with the parameters of an image; what they leave out has its default. */
export function fill(parameters) {
  const told = {...DEFAULTS, ...parameters};
  for (const [id, word] of Object.entries(FIELDS)) {
    if (told[word] !== undefined) $(id).value = told[word];
  }
  if ($("sampler").selectedIndex < 0) $("sampler").value = "";
  $("count").value = 1;
  more = Object.fromEntries(OTHERS.filter(word => word in told).map(word => [word, told[word]]));
  showMore();
  for (const id of ["steps", "strength"]) $(id).dispatchEvent(new Event("input", {bubbles: true}));
}

function showMore() {
  const words = Object.entries(more).map(([word, value]) => `${word} ${JSON.stringify(value)}`);
  $("more").hidden = !words.length;
  $("more").querySelector("span").textContent = `Also of the file: ${words.join(", ")}.`;
}

/** Let sizes be multiples of what a model's are; they and guidance begin at its own. */
export function resize(size, multiple, guidance) {
  DEFAULTS.guidance = $("guidance").value = guidance;
  for (const id of ["width", "height"]) {
    $(id).min = $(id).step = multiple;
    $(id).value = size;
  }
}

$("more").querySelector("button").addEventListener("click", () => {
  more = {};
  showMore();
  $("seed").focus();
});
$("random").addEventListener("click", () => $("seed").value = "");
// Enter draws; where a text is composed, as in Japanese, it ends the composition.
for (const id of ["prompt", "negative"]) {
  $(id).addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("form").requestSubmit();
  });
}
for (const id of ["strength", "brush"]) {
  $(id).addEventListener("input", ({target}) => target.nextElementSibling.textContent = target.value);
}
