// Sends one picture at a time to the service, then shows both on top of each other, divided by a line.

const KINDS = {
  "image/jpeg": ["JPEG", "jpg"],
  "image/png": ["PNG", "png"],
  "image/webp": ["WebP", "webp"],
  "image/avif": ["AVIF", "avif"],
  "image/gif": ["GIF", "gif"],
  "image/heic": ["HEIC", "heic"],
  "image/heif": ["HEIF", "heif"],
};
const TYPES = { heic: "image/heic", heif: "image/heif", hif: "image/heif", avif: "image/avif" };
const NOT_EVERYWHERE = ["image/avif", "image/heic", "image/heif"]; // types that some browsers cannot show
const MEGABYTE = 2 ** 20;
const MAX_ATTEMPTS = 5; // for one picture while the service is busy
const WAIT_S = 5; // between attempts, unless the service sends Retry-After
const CONNECTION_LOST = "The connection to the service broke. Your picture is still here: try again.";

const part = (id) => document.getElementById(id);
const zooms = [...document.querySelectorAll("[data-zoom]")];

let current = null; // the picture on the page: { file, stop: AbortController, urls: object URLs to revoke }
let clock = 0; // the interval that counts seconds beside the status
let limits = null; // promise of the response of GET limits

/** An error shown to the user in one sentence; `again` if the same picture may succeed when it is sent again. */
class UserError extends Error {
  constructor(sentence, again = false, animated = false) {
    super(sentence);
    this.again = again;
    this.animated = animated; // the service can take its first frame
  }
}

// One picture, from selection to result

async function begin(file) {
  discard();
  const work = (current = { file, stop: new AbortController(), urls: [] });
  const { signal } = work.stop;
  show("running");
  announce("Looking at the picture");
  try {
    await checkFile(file);
    signal.throwIfAborted();
    await loadBlurred(file, work);
    await checkSize(file, part("blurred"));
    signal.throwIfAborted();
    layOut(file);
    const restored = await restore(work);
    await load(part("restored"), restored, work);
    signal.throwIfAborted();
    showResult(file, restored.type);
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

/** The restored picture, a Blob. Of an animated one the first frame, if the user wants it. */
async function restore(work) {
  const { file, stop: { signal } } = work;
  try {
    return await send("restore", file, signal);
  } catch (error) {
    if (!error.animated) throw error;
  }
  signal.throwIfAborted();
  if (!confirm(`${file.name} is animated. Restore its first frame?`)) {
    throw new UserError(`${file.name} is animated: choose another picture.`);
  }
  await load(part("blurred"), await send("decode?first_frame=1", file, signal), work);
  return send("restore?first_frame=1", file, signal);
}

function discard() {
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
    image.onerror = () => reject(new UserError(`${work.file.name} cannot be read as a picture: choose another.`));
  });
  image.src = url;
  await settled;
}

/** Shows the picture as it is, or as the service decodes it where the browser cannot. */
async function loadBlurred(file, work) {
  try {
    await load(part("blurred"), file, work);
  } catch (error) {
    if (!NOT_EVERYWHERE.includes(typeOf(file))) throw error;
    await load(part("blurred"), await send("decode", file, work.stop.signal), work);
  }
}

/** The media type; by the ending where the operating system does not know it, as HEIC on Linux and Windows. */
const typeOf = (file) => file.type || TYPES[file.name.split(".").pop().toLowerCase()] || "";

// Checks before the upload

function fetchLimits() {
  limits ??= fetch("limits").then((answer) => answer.json()).catch(() => {
    limits = null; // the next picture fetches them again
    throw new UserError(CONNECTION_LOST, true);
  });
  return limits;
}

async function checkFile(file) {
  const { bytes, types } = await fetchLimits();
  if (!types.includes(typeOf(file))) {
    throw new UserError(`${file.name} is not a ${listed(types)} picture: save it as one of these first.`);
  }
  checkLimit(file, file.size / MEGABYTE, bytes / MEGABYTE, "MB");
}

async function checkSize(file, { naturalWidth, naturalHeight }) {
  const { pixels } = await fetchLimits();
  checkLimit(file, (naturalWidth * naturalHeight) / 1e6, pixels / 1e6, "megapixels");
}

function checkLimit(file, amount, most, unit) {
  if (amount <= most) return;
  const rounded = Math.ceil(10 * amount) / 10; // never down to the limit
  throw new UserError(`${file.name} has ${rounded} ${unit}, of at most ${floored(most)}: make it smaller first.`);
}

const floored = (amount) => Math.floor(10 * amount) / 10;
const listed = (types) =>
  new Intl.ListFormat("en-GB", { type: "disjunction" }).format(types.map((type) => KINDS[type]?.[0] ?? type));

// The service

/** The restored or decoded picture, a Blob. Retries after the time the service asks for while it is busy (503). */
async function send(path, file, signal) {
  for (let attempt = 1; ; attempt++) {
    const answer = await post(path, file, signal);
    if (answer.status === 200 && answer.response.type in KINDS) return answer.response;
    if (answer.status !== 503 || attempt === MAX_ATTEMPTS) throw await errorOf(answer);
    await countDown(Number(answer.getResponseHeader("Retry-After")) || WAIT_S, signal);
  }
}

// XMLHttpRequest, because fetch does not report upload progress.
function post(path, file, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Content-Type", typeOf(file));
    request.responseType = "blob";
    request.upload.onloadstart = () => {
      announce("Uploading");
      showUploaded(0);
    };
    request.upload.onprogress = ({ loaded, total }) => showUploaded(loaded / total);
    request.upload.onload = () => countUp(path.startsWith("restore") ? "Restoring" : "Decoding");
    request.onload = () => resolve(request);
    request.onerror = () => reject(new UserError(CONNECTION_LOST, true));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

async function errorOf(answer) {
  const own = answer.response.type.startsWith("text/plain"); // otherwise the page of a proxy
  const sentence = own ? await answer.response.text() : `The service answered ${answer.status}: try again later.`;
  return new UserError(sentence, answer.status >= 500 || answer.status === 408, answer.status === 422);
}

// Status and errors

function show(state) {
  document.body.dataset.state = state;
  for (const each of document.querySelectorAll("[data-in]")) {
    each.toggleAttribute("hidden", !each.dataset.in.split(" ").includes(state)); // SVG elements have no property `hidden`
  }
  part("choose").textContent = ["running", "result"].includes(state) ? "Another picture" : "Choose a picture";
}

function announce(text) {
  clearInterval(clock);
  part("status").textContent = text;
  part("count").textContent = "";
}

function showUploaded(share) {
  part("progress").value = share;
  part("count").textContent = `${Math.floor(100 * share)} %`;
}

function countUp(text) {
  announce(text);
  part("progress").removeAttribute("value");
  const start = performance.now();
  clock = setInterval(() => (part("count").textContent = `${Math.round((performance.now() - start) / 1000)} s`), 1000);
}

async function countDown(seconds, signal) {
  announce("The service cannot restore it just now. Trying again");
  part("progress").removeAttribute("value");
  for (let left = seconds; left > 0; left--) {
    part("count").textContent = `in ${left} s`;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
  }
}

/** Shows the blurred picture, fitted to the stage. */
function layOut(file) {
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
  announce("Restored. Move the line to compare.");
  part("share").focus();
}

function showError(error) {
  if (!(error instanceof UserError)) console.error(error);
  show("error");
  announce("");
  part("trouble").textContent = error.message;
  part("again").hidden = !error.again;
  (error.again ? part("again") : part("file")).focus();
}

function cancel() {
  discard();
  show("empty");
  announce("Cancelled.");
  part("file").focus();
}

// The line between blurred and restored

/** [left, width] in the window of the visible part of the picture. */
function visible() {
  const stage = part("stage").getBoundingClientRect();
  const sheet = part("sheet").getBoundingClientRect();
  const left = Math.max(stage.left, sheet.left);
  return [left, Math.min(stage.right, sheet.right) - left];
}

/** Moves the line to the position of the slider, relative to the visible part, and clips both pictures there. */
function placeLine() {
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

/** Drags the line, or pans a zoomed picture; touch pans by scrolling instead. */
function startDrag(event) {
  const held = document.body.dataset.state === "result" && event.target.closest(".handle, .fit");
  const touched = event.pointerType === "touch";
  if (event.button || !event.target.closest("#sheet, .handle") || (touched && !held)) return;
  part("viewer").setPointerCapture(event.pointerId);
  part("viewer").onpointermove = held ? slideTo : panFrom(event);
  if (!held) return;
  const before = part("share").value;
  part("viewer").onpointerup = endDrag;
  part("viewer").onpointercancel = () => slide(before); // the page scrolls instead
  if (!touched) slideTo(event);
}

function slide(share) {
  part("share").value = share;
  placeLine();
}

function slideTo({ clientX }) {
  const [left, width] = visible();
  slide(100 * (1 - (clientX - left) / width));
}

function endDrag(event) {
  slideTo(event);
  part("share").focus({ preventScroll: true }); // the arrow keys continue from here
}

function panFrom({ clientX, clientY }) {
  const { scrollLeft, scrollTop } = part("stage");
  return (event) => part("stage").scrollTo(scrollLeft + clientX - event.clientX, scrollTop + clientY - event.clientY);
}

function release() {
  const viewer = part("viewer");
  viewer.onpointermove = viewer.onpointerup = viewer.onpointercancel = null;
}

// Zoom: at 100 % one pixel of the picture is one pixel of the screen

function zoomTo(button) {
  const stage = part("stage");
  const x = (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth;
  const y = (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight;
  for (const each of zooms) each.setAttribute("aria-pressed", each === button);
  const fit = button === zooms[0];
  part("sheet").classList.toggle("fit", fit);
  part("viewer").style.setProperty("--zoom", fit ? 1 : button.dataset.zoom / devicePixelRatio);
  stage.tabIndex = fit ? -1 : 0; // focusable if it scrolls
  stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2);
  placeLine();
}

function zoomByKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const now = zooms.findIndex((each) => each.getAttribute("aria-pressed") === "true");
  const wanted = { "+": now + 1, "=": now + 1, "-": now - 1, 0: 0 }[event.key];
  if (zooms[wanted]) zoomTo(zooms[wanted]);
}

// Ways to choose a picture

const take = ({ files: [file] }) => file && begin(file);

function listen() {
  part("file").onchange = ({ target }) => {
    take(target);
    target.value = ""; // so that choosing the same file again is a change
  };
  document.onpaste = ({ clipboardData }) => take(clipboardData);
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  };
  document.ondragleave = ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("over"); // left the window
  };
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    if (!take(event.dataTransfer)) {
      discard();
      showError(new UserError("That is not a file: save the picture first, then drop or choose the file."));
    }
  };
  part("cancel").onclick = cancel;
  part("again").onclick = () => begin(current.file);
  part("share").oninput = placeLine;
  part("viewer").onpointerdown = startDrag;
  part("viewer").onlostpointercapture = release;
  part("work").onkeydown = zoomByKey;
  part("stage").onscroll = placeLine;
  new ResizeObserver(placeLine).observe(part("stage"));
  for (const each of zooms) each.onclick = () => zoomTo(each);
}

async function showLimits() {
  const { bytes, pixels, types } = await fetchLimits();
  part("file").accept = types.join();
  part("limits").textContent = `${listed(types)}, up to ${floored(bytes / MEGABYTE)} MB and ${floored(pixels / 1e6)} megapixels`;
}

listen();
show("empty");
showLimits().catch(() => {}); // reported when a picture is chosen
