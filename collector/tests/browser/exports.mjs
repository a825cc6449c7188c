// Opens exports in headless Chromium as people do: `node exports.mjs CASE FILE WORD...`.
// What is looked for is in the WORDs; what went wrong is thrown.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.REPRIEVE_NPM + "/node_modules/");
const puppeteer = require("puppeteer-core").default ?? require("puppeteer-core");
const [name, file, ...words] = process.argv.slice(2);
// The page of speedscope draws with WebGL, which is done by the processor here.
const args = ["--no-sandbox", "--enable-unsafe-swiftshader"];
const browser = await puppeteer.launch({ executablePath: "/usr/bin/chromium", args });
const problems = [];

const open = async url => {
  const page = await browser.newPage();
  page.on("console", message => {
    if (["error", "assert"].includes(message.type())) problems.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", error => problems.push(error.message));
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(url);
  return page;
};

const cases = {
  // WORDs: a title for each profile in the file, and a function of the first.
  async speedscope() {
    const titles = words.slice(0, -1);
    const page = await open(pathToFileURL(require.resolve("speedscope/dist/release/index.html")).href);
    const input = await page.waitForSelector("input[type=file]");
    await input.uploadFile(file);
    const shows = text => page.waitForFunction(text => document.body.innerText.includes(text), { timeout: 20000 }, text);
    await shows(titles[0]);
    assert.ok((await page.$$("canvas")).length > 0, "nothing is drawn");
    // A table of all functions.
    await page.keyboard.press("3");
    await shows(words.at(-1));
    for (const title of titles.slice(1)) {
      await page.keyboard.press("n");
      await shows(title);
    }
  },

  // WORDs: a function, and its share of the whole in percent.
  async svg() {
    const [wanted, percent] = words;
    const page = await open(pathToFileURL(file).href);
    const shown = id => page.$eval(`#${id}`, text => text.classList.contains("hide") ? "" : text.textContent.trim());
    assert.equal(await shown("matched"), "");
    page.once("dialog", dialog => dialog.accept(wanted));
    await page.click("#search");
    await page.waitForFunction(() => !document.getElementById("matched").classList.contains("hide"));
    const matched = /^Matched: ([\d.]+)%$/.exec(await shown("matched"));
    // What is too narrow to be drawn is not found.
    assert.ok(Math.abs(Number(matched[1]) - Number(percent)) < 0.2, `${matched} is ${percent}`);
    // A click on it makes it as wide as the graph; there is a way back.
    const frame = await page.evaluateHandle(wanted => {
      const groups = [...document.querySelectorAll("#frames g")];
      return groups.find(group => group.querySelector("title").textContent.startsWith(wanted)).querySelector("rect");
    }, wanted);
    const width = () => frame.evaluate(rect => rect.getBoundingClientRect().width);
    const whole = await page.$eval("#frames", frames => frames.getBoundingClientRect().width);
    const before = await width();
    assert.equal(await shown("unzoom"), "");
    await frame.click();
    assert.ok(Math.abs(await width() - whole) < 2, `${await width()} of ${whole}`);
    await page.click("#unzoom");
    assert.ok(before < whole - 2 && Math.abs(await width() - before) < 0.1, `${before} of ${whole}, then ${await width()}`);
  },
};

try {
  await cases[name]();
  assert.deepEqual(problems, []);
} catch (error) {
  // What the page said tells more than what did not come.
  problems.forEach(problem => console.error(problem));
  throw error;
} finally {
  await browser.close();
}
