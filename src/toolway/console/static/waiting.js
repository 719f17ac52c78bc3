/* How many calls wait for a person, for the navigation; and the topic that says when that may have changed. */

import { signal } from "@preact/signals";
import { follow, get } from "./api.js";

export const waiting = signal(0);

async function load() {
  waiting.value = (await get("approvals")).approvals.length;
}

export function watchApprovals() {
  const look = () => load().catch(() => {}); /* what is not known is not shown; the page of the approvals says why */
  look();
  return follow("approvals", look);
}
