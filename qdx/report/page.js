"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
  button.hidden = false;
  name();
  system.addEventListener("change", name);
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); redraw(); });
  system.addEventListener("change", () => redraw());

  // What is wider than the window scrolls by itself; the keyboard must reach it.
  const reach = () => {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth + 1) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        const owner = box.closest("figure");
        const said = box.querySelector("caption") || (owner && owner.querySelector("figcaption strong"));
        box.setAttribute("aria-label", `${said ? said.textContent : "wide content"} (scrolls sideways)`);
      } else {
        box.removeAttribute("tabindex");
        box.removeAttribute("role");
        box.removeAttribute("aria-label");
      }
    }
  };
  reach();
  window.addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);

  // A chart is drawn when it comes near the window: a page may have hundreds.
  const charts = [...document.querySelectorAll(".chart")];
  const looks = charts.length ? JSON.parse(document.getElementById("looks").textContent) : {};
  const refuse = () => Promise.reject(new Error("a report loads nothing"));
  const drawn = new Map();
  const draw = async (box) => {
    drawn.get(box)?.finalize();
    drawn.delete(box);
    const spec = JSON.parse(box.parentElement.nextElementSibling.textContent);
    delete spec.usermeta; // options of the page are the page's
    if (typeof spec.width === "number" || (spec.width === undefined && (spec.mark || spec.layer))) {
      spec.width = "container";
      spec.autosize = { type: "fit-x", contains: "padding" };
      box.classList.add("fits");
    }
    const night = dark();
    try {
      // Vega names the element that it draws into; what the box says to a screen reader stays.
      const place = box.firstElementChild || box.appendChild(document.createElement("div"));
      place.ariaHidden = "true";
      const view = await vegaEmbed(place, spec, {
        mode: "vega-lite",
        ast: true, // the page forbids eval: expressions are interpreted
        actions: false,
        defaultStyle: false,
        renderer: "svg",
        config: looks[night ? "dark" : "light"],
        loader: { load: refuse, sanitize: refuse, http: refuse, file: refuse },
        tooltip: { disableDefaultStyle: true },
      });
      drawn.set(box, view);
      box.style.minHeight = "";
      box.dataset.drawn = night ? "dark" : "light";
    } catch (error) {
      box.textContent = `This chart cannot be drawn: ${error.message}`;
      box.dataset.drawn = "failed";
      console.error(error);
    }
    if (night !== dark()) await draw(box);
    reach();
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "300px" });
  charts.forEach((box) => near.observe(box));
  const redraw = () => { for (const box of [...drawn.keys()]) draw(box); };

  // A link into a closed part opens it.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let at = target && target.parentElement; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
})();
