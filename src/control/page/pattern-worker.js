// Draws the test card in a worker and writes the frames into the page's track. The reason is the tab that publishes
// in the background while its viewers are looked at: there, a page's timers run once a second, a worker's at full rate.

import { testCard } from "./pattern.js";

self.onmessage = ({ data: { writable, width, height, framesPerSecond } }) => {
  const canvas = new OffscreenCanvas(width, height);
  const paint = testCard(canvas, new OffscreenCanvas(width, height));
  const writer = writable.getWriter();
  const start = performance.now();
  let frame = 0;

  const timer = setInterval(async () => {
    // A sink that lags gets fewer frames, not a queue of old ones.
    if (writer.desiredSize <= 0) return;
    paint(frame);
    frame += 1;
    const picture = new VideoFrame(canvas, { timestamp: Math.round((performance.now() - start) * 1000) });
    try {
      await writer.write(picture);
    } catch {
      // The track was stopped; the page ends this worker.
      clearInterval(timer);
      picture.close();
    }
  }, 1000 / framesPerSecond);
};
