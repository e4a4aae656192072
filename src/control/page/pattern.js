// The test card: a still card to judge colour and sharpness by, and on it what moves: a clock, a frame counter, a hand
// that goes round once a second, and a flash at each whole second together with the beep (see source.js).
//
// Drawn either by pattern-worker.js or, where a worker cannot feed a track, on the page.

const BARS = ["#c0c0c0", "#c0c000", "#00c0c0", "#00c000", "#c000c0", "#c00000", "#0000c0"];

/** How long the flash and the beep last. */
export const BEEP_MS = 100;

/** Returns a function that paints one frame: the card is painted once and copied, so a frame costs little. */
export function testCard(canvas, stillCanvas) {
  const { width, height } = canvas;
  const pen = canvas.getContext("2d", { alpha: false, desynchronized: true });
  stillCanvas.width = width;
  stillCanvas.height = height;
  drawStill(stillCanvas.getContext("2d", { alpha: false }), width, height);

  return (frame, now = Date.now()) => {
    pen.drawImage(stillCanvas, 0, 0);
    drawMoving(pen, width, height, frame, now);
  };
}

function drawStill(pen, width, height) {
  const unit = height / 90;
  const cell = unit * 10;
  pen.fillStyle = "#33393b";
  pen.fillRect(0, 0, width, height);

  pen.strokeStyle = "#59625f";
  pen.lineWidth = Math.max(1, unit * 0.25);
  pen.beginPath();
  for (let x = (width / 2) % cell; x < width; x += cell) line(pen, x, 0, x, height);
  for (let y = (height / 2) % cell; y < height; y += cell) line(pen, 0, y, width, y);
  pen.stroke();

  // Corner marks: if one is missing, the picture has been cropped.
  pen.fillStyle = "#e8ecea";
  for (const [x, y] of [
    [0, 0],
    [width - cell, 0],
    [0, height - unit],
    [width - cell, height - unit],
  ])
    pen.fillRect(x, y, cell, unit);
  for (const [x, y] of [
    [0, 0],
    [width - unit, 0],
    [0, height - cell],
    [width - unit, height - cell],
  ])
    pen.fillRect(x, y, unit, cell);

  pen.save();
  disc(pen, width / 2, height / 2, unit * 38);
  pen.clip();
  const left = width / 2 - unit * 38;
  const barWidth = (unit * 76) / BARS.length;
  BARS.forEach((colour, i) => {
    pen.fillStyle = colour;
    pen.fillRect(left + i * barWidth, 0, barWidth + 1, height * 0.56);
  });
  // Grey steps below the bars, then gratings that get finer until the encoder gives up.
  for (let i = 0; i < 8; i += 1) {
    const grey = Math.round((i / 7) * 255);
    pen.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    pen.fillRect(left + i * unit * 9.5, height * 0.56, unit * 9.5 + 1, unit * 17);
  }
  pen.fillStyle = "#15191a";
  pen.fillRect(left, height * 0.56 + unit * 17, unit * 76, height);
  pen.fillStyle = "#e8ecea";
  let x = width / 2 - unit * 24;
  for (const period of [2.4, 1.6, 1.2, 0.8]) {
    for (let i = 0; i < 12 / period; i += 1)
      pen.fillRect(x + i * period * unit, height * 0.56 + unit * 18.5, (period * unit) / 2, unit * 7);
    x += unit * 12.5;
  }
  pen.restore();

  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.font = `700 ${unit * 4}px system-ui, sans-serif`;
  pen.fillText("manycast", width / 2, height * 0.56 + unit * 29);

  pen.strokeStyle = "#e8ecea";
  pen.lineWidth = unit * 0.7;
  disc(pen, width / 2, height / 2, unit * 38);
  pen.stroke();

  pen.fillStyle = "#101314";
  pen.fillRect(width / 2 - unit * 31, height / 2 - unit * 11, unit * 62, unit * 18);
}

function drawMoving(pen, width, height, frame, now) {
  const unit = height / 90;
  const turn = (now % 1000) / 1000;
  const onBeep = now % 1000 < BEEP_MS;

  // The hand.
  const angle = turn * 2 * Math.PI - Math.PI / 2;
  pen.lineWidth = unit * 2;
  pen.strokeStyle = "#ff4b55";
  pen.beginPath();
  pen.arc(width / 2, height / 2, unit * 40.5, angle - 0.5, angle);
  pen.stroke();
  pen.fillStyle = "#ff4b55";
  disc(pen, width / 2 + Math.cos(angle) * unit * 40.5, height / 2 + Math.sin(angle) * unit * 40.5, unit * 2.2);
  pen.fill();

  // The clock of this machine, to read the delay off two screens side by side.
  const date = new Date(now);
  const two = (n) => String(n).padStart(2, "0");
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
  pen.textBaseline = "middle";
  pen.textAlign = "center";
  pen.fillStyle = "#ffffff";
  pen.font = `600 ${unit * 7.8}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace`;
  pen.fillText(clock, width / 2, height / 2 - unit * 4.6);
  pen.fillStyle = "#aab4b1";
  pen.font = `500 ${unit * 4}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace`;
  pen.fillText(`frame ${String(frame).padStart(6, "0")}   ${width}×${height}`, width / 2, height / 2 + unit * 3);

  pen.fillStyle = onBeep ? "#ffffff" : "#101314";
  disc(pen, unit * 10, height / 2, unit * 5);
  pen.fill();
}

function line(pen, x1, y1, x2, y2) {
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
}

function disc(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
}
