// The button that stops a run (live.py). A cell that runs takes no messages from widgets on many
// servers, so it interrupts the kernel, as the notebook's own stop button does, by the page's API.
const OWN = "Press the notebook's own stop button (■, interrupt): it keeps the run, too.";

export default {
  render({ model, el }) {
    const button = el.appendChild(document.createElement("button"));
    const said = el.appendChild(document.createElement("span"));
    button.type = "button";
    button.className = "wb-stop";
    button.textContent = "Stop, and keep the run";
    said.setAttribute("role", "status");
    button.addEventListener("click", () => {
      const kernel = model.widget_manager?.kernel;
      button.disabled = Boolean(kernel?.interrupt);
      said.textContent = button.disabled ? " stopping …" : ` ${OWN}`;
      kernel?.interrupt?.();
    });
  },
};
