// Opens reports in Chromium as a reader would, and says in JSON what he would trip over.
//
//   node check.mjs --out FOLDER [--chromium /usr/bin/chromium] [--thorough] report.html [more ...]
//
// The JSON goes to FOLDER/findings.json, the page as a PDF beside it. --thorough asks every rule in
// every view of all there is, and takes a picture of each view. Nothing is judged here: the tests do
// that.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { HtmlValidate, StaticConfigLoader } from "html-validate";
import { chromium } from "playwright-core";
import { interact } from "./interact.mjs";
import { figures, overflow, shorten, shown } from "./probes.mjs";

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
// What a rule says of structure holds in every view, what it says of colours in every width, and
// what it says of sizes in every colour.
const VIEWS = [
  { width: 1280, height: 900, colorScheme: "light", rules: null },
  { width: 1280, height: 900, colorScheme: "dark", rules: ["color-contrast"] },
  { width: 390, height: 844, colorScheme: "light", rules: ["scrollable-region-focusable", "target-size"] },
  { width: 390, height: 844, colorScheme: "dark", rules: [] },
];
// Rows of a table, and small figures and receipts, that are put to the rules: the others are made
// alike, and there are hundreds.
const FIRST = [12, 3];
// A4 upright less its margins, and across, in CSS pixels.
const PAPER = { upright: 688, across: 1032 };
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];

// The rules of the language and of accessibility; how it is laid out is the template's affair.
const validator = new HtmlValidate(
  new StaticConfigLoader({
    root: true,
    extends: ["html-validate:standard", "html-validate:a11y"],
    rules: {
      // Figures carry their colours in style attributes; a title is as long as the model's name.
      "no-inline-style": "off",
      "long-title": "off",
      // A box that scrolls is a region for the keyboard and no section of the text.
      "prefer-native-element": ["error", { exclude: ["region"] }],
    },
  }),
);

// Opens a page and keeps what must not happen: requests, errors, dialogs.
async function open(browser, url, options) {
  const { width, height, ...more } = options;
  const context = await browser.newContext({ viewport: { width, height }, ...more });
  const seen = { requests: [], errors: [], dialogs: [] };
  context.on("request", (request) => {
    const address = request.url();
    if (address.split("#")[0] !== url && !address.startsWith("data:")) seen.requests.push(address);
  });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.errors.push(message.text());
  });
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("dialog", async (dialog) => {
    seen.dialogs.push(dialog.message());
    await dialog.dismiss();
  });
  await page.goto(url, { waitUntil: "load" });
  return { context, page, seen };
}

async function axe(page, rules) {
  await page.evaluate(AXE);
  const { violations, passes } = await page.evaluate(
    ([tags, only]) => window.axe.run(document, {
      runOnly: only ? { type: "rule", values: only } : { type: "tag", values: tags },
      resultTypes: ["violations"],
      elementRef: false,
    }),
    [TAGS, rules],
  );
  const found = violations.map((one) => ({
    id: one.id,
    impact: one.impact,
    help: one.help,
    nodes: one.nodes.slice(0, 5).map((node) => `${node.target.join(" ")}: ${node.html.slice(0, 160)}`),
    n_nodes: one.nodes.length,
  }));
  return { found, n_passed: passes.length };
}

async function view(browser, url, { rules, ...options }, { thorough, picture }) {
  const { context, page, seen } = await open(browser, url, options);
  const found = {
    width: options.width,
    scheme: options.colorScheme,
    overflow: await page.evaluate(overflow, false),
    figures: await page.evaluate(figures),
  };
  if (thorough) await page.screenshot({ path: picture, fullPage: true });
  else await page.evaluate(shorten, FIRST);
  found.axe = thorough || rules?.length !== 0 ? await axe(page, thorough ? null : rules) : null;
  await context.close();
  return { ...found, ...seen };
}

async function withoutScript(browser, url) {
  const { context, page, seen } = await open(browser, url, { width: 1280, height: 900, javaScriptEnabled: false });
  const found = await page.evaluate(shown);
  await context.close();
  return { ...found, ...seen };
}

async function paper(browser, url, file) {
  const { context, page, seen } = await open(browser, url, { width: PAPER.across, height: 900, colorScheme: "dark" });
  await page.emulateMedia({ media: "print" });
  const across = await page.evaluate(overflow, false);
  await page.setViewportSize({ width: PAPER.upright, height: 900 });
  const upright = await page.evaluate(overflow, true);
  const paint = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const pdf = await page.pdf({ path: file, preferCSSPageSize: true, printBackground: true });
  await context.close();
  const n_pages = (pdf.toString("latin1").match(/\/Type\s*\/Page\b/g) ?? []).length;
  return { overflow: [...across, ...upright], paint, n_pages, n_bytes: pdf.length, ...seen };
}

async function use(browser, url) {
  const permissions = ["clipboard-read", "clipboard-write"];
  const { context, page, seen } = await open(browser, url, { width: 1280, height: 900, permissions });
  const found = await interact(page);
  await context.close();
  return { ...found, ...seen };
}

async function inspect(browser, path, { out, thorough }) {
  const url = pathToFileURL(resolve(path)).href;
  const name = basename(path, ".html");
  const html = readFileSync(path, "utf8");
  const pictured = (one) => join(out, `${name}-${one.width}-${one.colorScheme}.png`);
  const looks = VIEWS.map((one) => view(browser, url, one, { thorough, picture: pictured(one) }));
  const [interaction, without_script, printed, report, ...views] = await Promise.all([
    use(browser, url),
    withoutScript(browser, url),
    paper(browser, url, join(out, `${name}.pdf`)),
    validator.validateString(html, path),
    ...looks,
  ]);
  return {
    bytes: Buffer.byteLength(html),
    html: report.results.flatMap((one) => one.messages).map((one) => `${one.line}:${one.column} ${one.ruleId}: ${one.message}`),
    views,
    without_script,
    interaction,
    paper: printed,
  };
}

const { values, positionals } = parseArgs({
  options: {
    chromium: { type: "string", default: process.env.CHROMIUM ?? "/usr/bin/chromium" },
    out: { type: "string" },
    thorough: { type: "boolean", default: false },
  },
  allowPositionals: true,
});
mkdirSync(values.out, { recursive: true });
const browser = await chromium.launch({ executablePath: values.chromium, args: ARGUMENTS });
try {
  const found = {};
  for (const path of positionals) found[basename(path, ".html")] = await inspect(browser, path, values);
  writeFileSync(join(values.out, "findings.json"), JSON.stringify({ browser: browser.version(), pages: found }, null, 1));
} finally {
  await browser.close();
}
