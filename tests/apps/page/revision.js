// Shows one revision while it comes: where it stands in the queue and why it waits, then its words. Both sample applications
// use this file; the page names the address of the job's events.
"use strict"

function follow(page) {
  const find = name => page.querySelector(`[data-show="${name}"]`)
  const [state, reasons, written, cancel] = ["state", "reasons", "written", "cancel"].map(find)
  const events = new EventSource(page.dataset.events)

  function on(name, show) {
    events.addEventListener(name, event => show(JSON.parse(event.data)))
  }

  function end(kind, words) {
    events.close()
    page.dataset.state = kind
    state.textContent = words
    reasons.replaceChildren()
    cancel.hidden = true
  }

  on("state", job => {
    page.dataset.state = job.state
    state.textContent = worded(job)
    reasons.replaceChildren(...job.reasons.map(listed))
    cancel.hidden = false
  })
  on("piece", piece => { written.append(piece.text) })            // as text: what a model writes is never markup
  on("restart", () => { written.replaceChildren() })              // another attempt writes it anew
  on("done", ({ result }) => {
    written.textContent = result.text
    end("done", "Done.")
  })
  on("failed", ({ code, message }) => {
    if (code === "cancelled") end("cancelled", "Cancelled.")
    else end("failed", message)
  })
  events.onerror = () => {                                        // the browser comes back by itself, and goes on where it was
    const isOver = events.readyState === EventSource.CLOSED
    state.textContent = isOver ? "Connection lost. Please load the page again." : "Connection lost. Trying again…"
  }
}

function worded(job) {
  if (job.state === "running") return "Writing…"
  const place = job.position === null ? "Waiting" : `Number ${job.position} in the queue`
  if (job.expected_start === null) return `${place}.`
  const seconds = Math.round((Date.parse(job.expected_start) - Date.now()) / 1000)
  return seconds > 0 ? `${place}. Starts in about ${inWords(seconds)}.` : `${place}. Starts in a moment.`
}

function inWords(seconds) {
  return seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} minutes`
}

function listed(reason) {
  const item = document.createElement("li")
  item.textContent = reason.detail
  return item
}

for (const page of document.querySelectorAll("[data-events]")) follow(page)
