// The images of this visit, the last one first.

const $ = id => document.getElementById(id);
const MOST = 200;  // images, which the browser holds in memory

/**
 * Add an image.
 * @param {Blob} image a PNG file with its parameters
 * @param {object} told seed, sampler, seconds, and the file's name
 * @param {{show: Function, use: Function, from: Function}} actions what its buttons do
 */
export function add(image, {seed, sampler, seconds, prompt, name}, {show, use, from}) {
  const card = $("card").content.cloneNode(true).firstElementChild, picture = card.querySelector("img");
  const url = URL.createObjectURL(image), title = prompt || "image";
  picture.src = url;
  picture.alt = `${title}, seed ${seed}`;
  picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth < 256));
  const figures = {Seed: seed, Sampler: sampler, Time: `${seconds.toFixed(1)} s`};
  card.querySelector("dl").append(...Object.entries(figures).flatMap(([word, value]) => [
    Object.assign(document.createElement("dt"), {textContent: word}),
    Object.assign(document.createElement("dd"), {textContent: value}),
  ]));
  const actionsOf = {".show": () => show(url, picture.alt), ".use": use, ".from": from};
  for (const [selector, action] of Object.entries(actionsOf)) {
    card.querySelector(selector).addEventListener("click", action);
  }
  Object.assign(card.querySelector("a"), {href: url, download: name});
  $("none").hidden = true;
  $("gallery").prepend(card);
  if ($("gallery").children.length > MOST) {
    const last = $("gallery").lastElementChild;
    URL.revokeObjectURL(last.querySelector("a").href);
    last.remove();
  }
  return url;
}
