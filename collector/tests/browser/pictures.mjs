// Pictures of a report: `node pictures.mjs REPORT FOLDER`.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.REPRIEVE_NPM + "/node_modules/");
const puppeteer = require("puppeteer-core").default ?? require("puppeteer-core");
const [report, folder] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });

const open = async scheme => {
  const page = await browser.newPage();
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.setViewport({ width: 1160, height: 1130 });
  await page.goto(pathToFileURL(report).href);
  await page.waitForFunction(() => [...document.querySelectorAll(".graph")].every(box => box.hasChildNodes()));
  return page;
};

try {
  // What is seen first, up to the flame graph.
  const first = await open("light");
  const height = await first.$eval("section[aria-labelledby=stacks]", section => section.getBoundingClientRect().y);
  await first.screenshot({ path: `${folder}/report.png`, clip: { x: 0, y: 0, width: 1160, height } });
  // The graph with the difference.
  const page = await open("dark");
  await page.click(".graph[data-views^=heap] .difference input");
  const graph = await page.$("section[aria-labelledby=stacks]");
  // On the page, which the click has scrolled.
  const y = await graph.evaluate(section => section.getBoundingClientRect().y + scrollY);
  const clip = { x: 0, y: y - 10, width: 1160, height: 725 };
  await page.screenshot({ path: `${folder}/growth.png`, clip, captureBeyondViewport: true });
} finally {
  await browser.close();
}
