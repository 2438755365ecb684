// The image to start from: a file, a drop, a paste, or one of the gallery.

import {Mask} from "./canvas.js";
import {parametersOf} from "./png.js";

const $ = id => document.getElementById(id);
const say = text => $("status").textContent = text;
let source = null;  // its data URL

const mask = new Mask($("mask"), {size: () => $("brush").valueAsNumber, erases: () => $("erase").checked, say});

/** The fields of a request that say what it starts from; none without an image. */
export function startFields() {
  if (!source) return {};
  const painted = mask.url();
  return {image: source, strength: $("strength").valueAsNumber, ...(painted ? {mask_image: painted} : {})};
}

/** Start from an image file. */
export async function startFrom(file) {
  const url = await dataUrl(file), image = await decoded(url);
  source = $("source").src = url;
  mask.reset(image.naturalWidth, image.naturalHeight);
  $("source").classList.toggle("small", image.naturalWidth < 256);
  $("start").hidden = false;
}

/** Take files from the user: one with parameters goes to `fill`, another image is started from. */
export function takeFiles(fill, complain) {
  const take = async file => {
    try {
      const parameters = await parametersOf(file);
      parameters ? await fill(parameters) : await startFrom(file);
      complain("");
    } catch (error) {
      complain(error.message);
    }
  };
  const chosen = (id, use) => $(id).addEventListener("change", async ({target}) => {
    const [file] = target.files;
    target.value = "";  // the same file may be chosen again
    if (file) await use(file);
  });
  chosen("file", take);
  chosen("mask-file", async file => {
    try {
      mask.read(await decoded(await dataUrl(file)));
      say("The mask is that of the file.");
    } catch (error) {
      complain(error.message);
    }
  });
  const dropping = on => event => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", on);
  };
  addEventListener("dragover", dropping(true));
  addEventListener("dragleave", dropping(false));
  addEventListener("drop", event => {
    dropping(false)(event);
    const [file] = event.dataTransfer.files;
    if (file) take(file);
  });
  addEventListener("paste", event => {
    const [file] = event.clipboardData.files;
    if (file) take(file);
  });
}

const dataUrl = file => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error("The file cannot be read."));
  reader.readAsDataURL(file);
});

async function decoded(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    throw new Error("The file is no image that this browser reads.");
  }
  return image;
}

$("clear").addEventListener("click", () => mask.clear());
$("remove").addEventListener("click", () => {
  source = null;
  $("start").hidden = true;
  $("file").focus();
});
