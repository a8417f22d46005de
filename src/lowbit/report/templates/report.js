"use strict";
// One layer at a time on the screen; without this script, and in print, all of them are there.
const choice = document.getElementById("layer");
if (choice) {
  const show = () => {
    for (const option of choice.options) {
      document.getElementById(option.value).classList.toggle("aside", !option.selected);
    }
  };
  choice.addEventListener("change", show);
  choice.closest("p").hidden = false;
  show();
}
