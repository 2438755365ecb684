// The dialog that asks for an API key.

const dialog = document.getElementById("key"), input = document.getElementById("key-input");
let asked = null;

/** The key that the user types; several requests that wait for it are asked once. */
export function askForKey(refused) {
  asked ??= new Promise(resolve => {
    if (refused) document.getElementById("key-text").textContent = "The server does not know this key.";
    input.value = "";
    dialog.addEventListener("close", () => {
      asked = null;
      resolve(input.value);
    }, {once: true});
    dialog.showModal();
  });
  return asked;
}

dialog.addEventListener("cancel", event => event.preventDefault());  // nothing works without a key
