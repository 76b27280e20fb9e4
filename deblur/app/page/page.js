// The page that removes blur: one picture at a time goes to the service, then both lie on one another, cut at a line.

const KINDS = { "image/jpeg": ["JPEG", "jpg"], "image/png": ["PNG", "png"], "image/webp": ["WebP", "webp"] };
const MEGABYTE = 2 ** 20;
const TRIES = 5; // of one picture while the service is busy
const WAIT_S = 5; // between them where the service does not say how long
const BROKEN = "The connection to the service broke. Your picture is still here: try again.";

const part = (id) => document.getElementById(id);
const zooms = [...document.querySelectorAll("[data-zoom]")];

let current = null; // the picture on the page: { file, stop: AbortController, urls: object URLs to revoke }
let clock = 0; // the interval that counts seconds beside the status
let limits = null; // promise of what GET limits answers

/** What is told to the reader in one sentence; `again` where the same picture may succeed on another try. */
class Trouble extends Error {
  constructor(sentence, again = false) {
    super(sentence);
    this.again = again;
  }
}

// One picture from the choice to the result

async function begin(file) {
  drop();
  const work = (current = { file, stop: new AbortController(), urls: [] });
  const { signal } = work.stop;
  show("running");
  say("Looking at the picture");
  try {
    await refuseByFile(file);
    signal.throwIfAborted();
    await load(part("blurred"), file, work);
    await refuseBySize(file, part("blurred"));
    signal.throwIfAborted();
    lay(file);
    const restored = await restore(file, signal);
    await load(part("restored"), restored, work);
    signal.throwIfAborted();
    showResult(file, restored.type);
  } catch (error) {
    if (!signal.aborted) showTrouble(error);
  }
}

function drop() {
  current?.stop.abort();
  current?.urls.forEach((url) => URL.revokeObjectURL(url));
  for (const image of [part("blurred"), part("restored")]) image.removeAttribute("src");
  part("download").removeAttribute("href");
  current = null;
}

async function load(image, blob, work) {
  const url = URL.createObjectURL(blob);
  work.urls.push(url);
  const settled = new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(new Trouble(`${work.file.name} cannot be read as a picture: choose another.`));
  });
  image.src = url;
  await settled;
}

// What is refused before anything is sent

function askLimits() {
  limits ??= fetch("limits").then((answer) => answer.json()).catch(() => {
    limits = null; // the next picture asks again
    throw new Trouble(BROKEN, true);
  });
  return limits;
}

async function refuseByFile(file) {
  const { bytes, types } = await askLimits();
  if (!types.includes(file.type)) {
    throw new Trouble(`${file.name} is not a ${listed(types)} picture: save it as one of these first.`);
  }
  refuseMore(file, file.size / MEGABYTE, bytes / MEGABYTE, "MB");
}

async function refuseBySize(file, { naturalWidth, naturalHeight }) {
  const { pixels } = await askLimits();
  refuseMore(file, (naturalWidth * naturalHeight) / 1e6, pixels / 1e6, "megapixels");
}

function refuseMore(file, amount, most, unit) {
  if (amount <= most) return;
  const rounded = Math.ceil(10 * amount) / 10; // never down to what would be taken
  throw new Trouble(`${file.name} has ${rounded} ${unit}, of at most ${floored(most)}: make it smaller first.`);
}

const floored = (amount) => Math.floor(10 * amount) / 10;
const listed = (types) =>
  new Intl.ListFormat("en-GB", { type: "disjunction" }).format(types.map((type) => KINDS[type]?.[0] ?? type));

// The service

/** The restored picture, a Blob. While the service is busy (503) it waits as told and asks again. */
async function restore(file, signal) {
  for (let attempt = 1; ; attempt++) {
    const answer = await post(file, signal);
    if (answer.status === 200 && answer.response.type in KINDS) return answer.response;
    if (answer.status !== 503 || attempt === TRIES) throw await refusal(answer);
    await countDown(Number(answer.getResponseHeader("Retry-After")) || WAIT_S, signal);
  }
}

// XMLHttpRequest, as fetch does not tell how much was sent.
function post(file, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "restore");
    request.setRequestHeader("Content-Type", file.type);
    request.responseType = "blob";
    request.upload.onloadstart = () => {
      say("Uploading");
      showUploaded(0);
    };
    request.upload.onprogress = ({ loaded, total }) => showUploaded(loaded / total);
    request.upload.onload = () => countUp("Restoring");
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Trouble(BROKEN, true));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

async function refusal(answer) {
  const own = answer.response.type.startsWith("text/plain"); // else it is a proxy's page
  const sentence = own ? await answer.response.text() : `The service answered ${answer.status}: try again later.`;
  return new Trouble(sentence, answer.status >= 500 || answer.status === 408);
}

// What is seen and heard

function show(state) {
  document.body.dataset.state = state;
  for (const each of document.querySelectorAll("[data-in]")) {
    each.toggleAttribute("hidden", !each.dataset.in.split(" ").includes(state)); // SVG has no property of that name
  }
  part("choose").textContent = ["running", "result"].includes(state) ? "Another picture" : "Choose a picture";
}

function say(text) {
  clearInterval(clock);
  part("status").textContent = text;
  part("count").textContent = "";
}

function showUploaded(share) {
  part("progress").value = share;
  part("count").textContent = `${Math.floor(100 * share)} %`;
}

function countUp(text) {
  say(text);
  part("progress").removeAttribute("value");
  const begun = performance.now();
  clock = setInterval(() => (part("count").textContent = `${Math.round((performance.now() - begun) / 1000)} s`), 1000);
}

async function countDown(seconds, signal) {
  say("The service cannot restore it just now. Trying again");
  part("progress").removeAttribute("value");
  for (let left = seconds; left > 0; left--) {
    part("count").textContent = `in ${left} s`;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
  }
}

/** Lays the blurred picture out, as a whole. */
function lay(file) {
  const { naturalWidth, naturalHeight } = part("blurred");
  part("name").textContent = part("name").title = file.name;
  part("viewer").style.setProperty("--width", `${naturalWidth}px`);
  part("viewer").style.setProperty("--ratio", naturalWidth / naturalHeight);
  zoomTo(zooms[0]);
  part("blurred").style.clipPath = "";
  part("cancel").focus();
}

function showResult(file, type) {
  part("download").href = part("restored").src;
  part("download").download = `${file.name.replace(/\.[^.]*$/, "")}-restored.${KINDS[type][1]}`;
  show("result");
  slide(50);
  say("Restored. Move the line to compare.");
  part("share").focus();
}

function showTrouble(error) {
  if (!(error instanceof Trouble)) console.error(error);
  show("error");
  say("");
  part("trouble").textContent = error.message;
  part("again").hidden = !error.again;
  (error.again ? part("again") : part("file")).focus();
}

function cancel() {
  drop();
  show("empty");
  say("Cancelled.");
  part("file").focus();
}

// The line between blurred and restored

/** [left, width] in the window: the part of the picture that the stage shows. */
function visible() {
  const stage = part("stage").getBoundingClientRect();
  const sheet = part("sheet").getBoundingClientRect();
  const left = Math.max(stage.left, sheet.left);
  return [left, Math.min(stage.right, sheet.right) - left];
}

/** Puts the line where the slider says, of what is visible, and cuts both pictures there. */
function place() {
  if (document.body.dataset.state !== "result") return;
  const [left, width] = visible();
  const sheet = part("sheet").getBoundingClientRect();
  const share = part("share").value;
  const edge = left + width * (1 - share / 100);
  const cut = (100 * (edge - sheet.left)) / sheet.width;
  part("blurred").style.clipPath = `inset(0 ${100 - cut}% 0 0)`;
  part("restored").style.clipPath = `inset(0 0 0 ${cut}%)`;
  part("line").style.left = `${edge - part("viewer").getBoundingClientRect().left}px`;
  part("share").setAttribute("aria-valuetext", `${Math.round(share)} % restored`);
}

/** A pointer moves the line, or a zoomed picture where it does not hold the line; a finger pans that by scrolling. */
function grab(event) {
  const held = document.body.dataset.state === "result" && event.target.closest(".handle, .fit");
  const touched = event.pointerType === "touch";
  if (event.button || !event.target.closest("#sheet, .handle") || (touched && !held)) return;
  part("viewer").setPointerCapture(event.pointerId);
  part("viewer").onpointermove = held ? slideTo : panFrom(event);
  if (!held) return;
  const before = part("share").value;
  part("viewer").onpointerup = letGo;
  part("viewer").onpointercancel = () => slide(before); // the finger scrolls the page
  if (!touched) slideTo(event);
}

function slide(share) {
  part("share").value = share;
  place();
}

function slideTo({ clientX }) {
  const [left, width] = visible();
  slide(100 * (1 - (clientX - left) / width));
}

function letGo(event) {
  slideTo(event);
  part("share").focus({ preventScroll: true }); // the arrow keys go on from here
}

function panFrom({ clientX, clientY }) {
  const { scrollLeft, scrollTop } = part("stage");
  return (event) => part("stage").scrollTo(scrollLeft + clientX - event.clientX, scrollTop + clientY - event.clientY);
}

function release() {
  const viewer = part("viewer");
  viewer.onpointermove = viewer.onpointerup = viewer.onpointercancel = null;
}

// Zoom: 100 % is one pixel of the picture on one of the screen

function zoomTo(button) {
  const stage = part("stage");
  const x = (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth;
  const y = (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight;
  for (const each of zooms) each.setAttribute("aria-pressed", each === button);
  const fit = button === zooms[0];
  part("sheet").classList.toggle("fit", fit);
  part("viewer").style.setProperty("--zoom", fit ? 1 : button.dataset.zoom / devicePixelRatio);
  stage.tabIndex = fit ? -1 : 0; // where there is something to scroll
  stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2);
  place();
}

function zoomByKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const now = zooms.findIndex((each) => each.getAttribute("aria-pressed") === "true");
  const wanted = { "+": now + 1, "=": now + 1, "-": now - 1, 0: 0 }[event.key];
  if (zooms[wanted]) zoomTo(zooms[wanted]);
}

// Where pictures come from

const take = ({ files: [file] }) => file && begin(file);

function listen() {
  part("file").onchange = ({ target }) => {
    take(target);
    target.value = ""; // so that the same file can be chosen again
  };
  document.onpaste = ({ clipboardData }) => take(clipboardData);
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  };
  document.ondragleave = ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("over"); // out of the window
  };
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    if (!take(event.dataTransfer)) {
      drop();
      showTrouble(new Trouble("That is not a file: save the picture first, then drop or choose the file."));
    }
  };
  part("cancel").onclick = cancel;
  part("again").onclick = () => begin(current.file);
  part("share").oninput = place;
  part("viewer").onpointerdown = grab;
  part("viewer").onlostpointercapture = release;
  part("work").onkeydown = zoomByKey;
  part("stage").onscroll = place;
  new ResizeObserver(place).observe(part("stage"));
  for (const each of zooms) each.onclick = () => zoomTo(each);
}

async function showLimits() {
  const { bytes, pixels, types } = await askLimits();
  part("file").accept = types.join();
  part("limits").textContent = `${listed(types)}, up to ${floored(bytes / MEGABYTE)} MB and ${floored(pixels / 1e6)} megapixels`;
}

listen();
show("empty");
showLimits().catch(() => {}); // told when a picture is chosen
