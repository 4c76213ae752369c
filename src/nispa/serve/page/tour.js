// A guided tour of about two minutes, beside the page and not over it: everything can be used meanwhile.
const STEPS = [
  ["watch", "Two copies of one network",
   "A network that learns one task after another usually forgets the first ones. Here are 1,200 units in three layers and a fifth of all connections between them. Every dot is a unit; some of the connections are drawn. At the start all are plastic: they may change."],
  ["teach", "Teach the first task",
   "Both networks learn to tell the digits 0 to 4. After each phase the units that carry most of the activity become candidates: rings in the picture.", "Teach digits 0 to 4", "first"],
  ["watch", "Connections move",
   "What leads from a plastic unit into a candidate is dropped (red, dashed), so that later changes cannot reach it. As many connections grow elsewhere, among what is plastic (green). With each phase fewer candidates must do. When accuracy would suffer, they become stable: coloured squares, frozen for good."],
  ["teach", "Teach something that disturbs",
   "Now the same digits, turned by a quarter. The network without NISPA changes all its connections to learn them. Watch the table under 3 meanwhile.", "Teach turned digits", "second"],
  ["test", "What is left of the first task?",
   "With NISPA every answer to the first task is what it was, bit for bit. Without it the first task is largely gone. Take some examples of task 1 and compare.", "Take an example of task 1", "example"],
  ["test", "For the class",
   "Why can new tasks still be learned? Because units were left plastic, and new ones may read what stable ones compute. What happens when all are stable? Teach more tasks and see, or draw characters of your own."],
];

export class Tour {
  // `acts` gives for a name a function that does it, or null if it was done.
  constructor(acts) {
    this.acts = acts;
    this.parts = Object.fromEntries(["", "-title", "-text", "-act", "-back", "-next", "-end", "-place"]
      .map((end) => [end, document.getElementById(`tour${end}`)]));
    this.opener = document.getElementById("tour-begin");
    this.opener.addEventListener("click", () => this.go(0));
    this.parts["-back"].addEventListener("click", () => this.go(this.step - 1));
    this.parts["-next"].addEventListener("click", () => this.step + 1 < STEPS.length ? this.go(this.step + 1) : this.end());
    this.parts["-end"].addEventListener("click", () => this.end());
    this.parts["-act"].addEventListener("click", () => this.acts[STEPS[this.step][4]]()?.());
    this.parts[""].addEventListener("keydown", (event) => { if (event.key === "Escape") this.end(); });
  }
  go(step) {
    this.step = step;
    const [section, title, text, act] = STEPS[step];
    this.light(section);
    if (!this.parts[""].open) this.parts[""].show();
    this.parts["-title"].textContent = title;
    this.parts["-text"].textContent = text;
    this.parts["-act"].textContent = act ?? "";
    this.parts["-act"].hidden = !act;
    this.parts["-back"].disabled = step === 0;
    this.parts["-next"].textContent = step + 1 < STEPS.length ? "Next" : "Done";
    this.parts["-end"].hidden = step + 1 === STEPS.length;
    this.parts["-place"].textContent = `${step + 1} of ${STEPS.length}`;
    this.parts["-title"].focus();
    document.getElementById(section).scrollIntoView({ block: "start", behavior: "auto" });
  }
  light(name) {
    for (const section of document.querySelectorAll("section")) section.classList.toggle("lit", section.id === name);
  }
  end() {
    this.light("");
    this.parts[""].close();
    this.opener.focus();
  }
}
