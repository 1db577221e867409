/**
 * Heatmap and state timeline. Grafana keeps the code of these two in its server's front end and exports
 * neither, so the cells here are drawn by hand; axes, colours, formats and the canvas are Grafana's. Look at
 * the data in these pictures, not at their looks.
 */

import {
  type DataFrame,
  type Field,
  FieldType,
  type TimeRange,
  formattedValueToString,
  getFieldDisplayName,
  getValueFormat,
} from '@grafana/data';
import { AxisPlacement, ScaleDirection, ScaleOrientation } from '@grafana/schema';
import { UPlotChart, UPlotConfigBuilder, VizLegend, type VizLegendItem, useTheme2 } from '@grafana/ui';
import * as chromatic from 'd3-scale-chromatic';
import { useMemo, useRef } from 'react';
import type uPlot from 'uplot';

import type { Panel } from './model';

interface Props {
  panel: Panel;
  frames: DataFrame[];
  range: TimeRange;
  width: number;
  height: number;
}

/** A rectangle of one colour: from one time to the next, in one row counted from below. */
interface Cell {
  from: number;
  to: number;
  row: number;
  color: string;
}

interface Grid {
  cells: Cell[];
  rows: number;
  labels: Array<{ at: number; text: string }>; // at: in rows from below
  inset: number; // how much of a row's height stays empty
}

export function Heatmap(props: Props) {
  const theme = useTheme2();
  const grid = useMemo(
    () => heatmap(props.panel, props.frames[0], theme.isDark),
    [props.panel, props.frames, theme],
  );
  return <Cells {...props} grid={grid} />;
}

export function StateTimeline(props: Props) {
  const grid = useMemo(() => timeline(props.frames, props.range), [props.frames, props.range]);
  const legend = useMemo(() => states(props.frames), [props.frames]);
  const shown =
    (props.panel.options?.legend as { showLegend?: boolean })?.showLegend !== false && legend.length > 0;
  const below = shown ? 28 : 0;
  return (
    <>
      <Cells {...props} height={props.height - below} grid={grid} />
      {shown && <VizLegend items={legend} displayMode={'list' as never} placement="bottom" />}
    </>
  );
}

function Cells({ panel, grid, range, width, height }: Props & { grid: Grid }) {
  const theme = useTheme2();
  const latest = useRef({ grid, range });
  latest.current = { grid, range };
  const labels = grid.labels.map((each) => each.text).join('\n');
  const config = useMemo(() => {
    const builder = new UPlotConfigBuilder('browser');
    const horizontal = { orientation: ScaleOrientation.Horizontal, direction: ScaleDirection.Right };
    const vertical = { orientation: ScaleOrientation.Vertical, direction: ScaleDirection.Up };
    builder.addScale({
      scaleKey: 'x',
      isTime: true,
      ...horizontal,
      range: () => [latest.current.range.from.valueOf(), latest.current.range.to.valueOf()],
    });
    builder.addScale({ scaleKey: 'y', ...vertical, range: () => [0, Math.max(1, latest.current.grid.rows)] });
    builder.addAxis({
      scaleKey: 'x',
      isTime: true,
      placement: AxisPlacement.Bottom,
      theme,
      timeZone: 'browser',
    });
    builder.addAxis({
      scaleKey: 'y',
      placement: AxisPlacement.Left,
      theme,
      grid: { show: false },
      splits: () => latest.current.grid.labels.map((each) => each.at),
      values: () => latest.current.grid.labels.map((each) => each.text),
    });
    builder.addSeries({ scaleKey: 'y', pathBuilder: () => null, theme } as never);
    builder.addHook('draw', (plot) => draw(plot, latest.current.grid));
    return builder;
  }, [theme, labels]);
  const data = useMemo<uPlot.AlignedData>(
    () => [
      [range.from.valueOf(), range.to.valueOf()],
      [0, grid.rows],
    ],
    [range, grid],
  );
  return (
    <UPlotChart key={`${panel.id} ${labels}`} config={config} data={data} width={width} height={height} />
  );
}

function draw(plot: uPlot, { cells, inset }: Grid): void {
  const { ctx } = plot;
  const { left, top, width, height } = plot.bbox;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  for (const cell of cells) {
    const x = Math.round(plot.valToPos(cell.from, 'x', true));
    const right = Math.round(plot.valToPos(cell.to, 'x', true));
    const y = plot.valToPos(cell.row + 1 - inset, 'y', true);
    const bottom = plot.valToPos(cell.row + inset, 'y', true);
    ctx.fillStyle = cell.color;
    ctx.fillRect(x, Math.round(y), Math.max(1, right - x), Math.max(1, Math.round(bottom) - Math.round(y)));
  }
  ctx.restore();
}

/** How many times as many in a cell as in another, by colour; an empty cell has none. */
function heatmap(panel: Panel, frame: DataFrame | undefined, dark: boolean): Grid {
  const options = (panel.options ?? {}) as any;
  const buckets = frame?.fields.filter((field) => field.type === FieldType.number) ?? [];
  const times = frame?.fields.find((field) => field.type === FieldType.time)?.values ?? [];
  const most = Math.max(...buckets.flatMap((field) => field.values as number[]), 0);
  const scheme =
    (chromatic as any)[`interpolate${options.color?.scheme ?? 'Oranges'}`] ?? chromatic.interpolateOranges;
  const exponent = options.color?.scale === 'linear' ? 1 : (options.color?.exponent ?? 0.5);
  // Grafana turns the schemes round when it is dark, so that much is bright and little fades.
  const reverse = Boolean(options.color?.reverse) !== dark;
  const color = (value: number) => {
    const share = (value / most) ** exponent;
    return scheme(reverse ? 1 - share : share);
  };
  const step = times.length > 1 ? times[1] - times[0] : 0;
  const cells = buckets.flatMap((field, row) =>
    times.flatMap((time, index): Cell[] => {
      const value = field.values[index];
      return value > 0 ? [{ from: time - step, to: time, row, color: color(value) }] : [];
    }),
  );
  const format = getValueFormat(options.yAxis?.unit ?? panel.fieldConfig?.defaults?.unit ?? 'short');
  const named = (name: string) =>
    name === '+Inf' ? name : formattedValueToString(format(Number(name), null));
  const every = Math.ceil(buckets.length / 8);
  const labels = buckets
    .map((field, row) => ({ at: row + 1, text: named(field.name) }))
    .filter((_, row) => (buckets.length - 2 - row) % every === 0);
  return { cells, rows: buckets.length, labels, inset: 0 };
}

/** A row per series, the first on top, with equal neighbours as one. */
function timeline(frames: DataFrame[], range: TimeRange): Grid {
  const series = frames.flatMap((frame) =>
    frame.fields
      .filter((field) => field.type !== FieldType.time)
      .map((field) => ({ frame, field, times: frame.fields.find((each) => each.type === FieldType.time) })),
  );
  const cells = series.flatMap(({ field, times }, index) =>
    stretches(field, times?.values ?? [], range.to.valueOf()).map((stretch) => ({
      ...stretch,
      row: series.length - 1 - index,
    })),
  );
  const labels = series.map(({ frame, field }, index) => ({
    at: series.length - index - 0.5,
    text: getFieldDisplayName(field, frame, frames),
  }));
  return { cells, rows: series.length, labels, inset: 0.1 };
}

function stretches(field: Field, times: number[], end: number): Array<Omit<Cell, 'row'>> {
  const found: Array<Omit<Cell, 'row'>> = [];
  const usual = times.length > 1 ? times[1] - times[0] : end;
  times.forEach((time, index) => {
    const value = field.values[index];
    if (value === null || value === undefined || Number.isNaN(value)) {
      return;
    }
    // A gap in the data is a gap in the picture.
    const to = Math.min(times[index + 1] ?? end, time + 1.5 * usual);
    const color = field.display?.(value).color ?? 'gray';
    const last = found.at(-1);
    if (last && last.color === color && last.to >= time) {
      last.to = to;
    } else {
      found.push({ from: time, to, color });
    }
  });
  return found;
}

function states(frames: DataFrame[]): VizLegendItem[] {
  const seen = new Map<string, string>();
  for (const field of frames.flatMap((frame) => frame.fields)) {
    if (field.type !== FieldType.time) {
      new Set(field.values).forEach((value) => {
        const { text, color } = field.display?.(value) ?? { text: '', color: '' };
        if (text) {
          seen.set(text, color ?? '');
        }
      });
    }
  }
  return [...seen].map(([label, color]) => ({ label, color, yAxis: 1 }));
}
