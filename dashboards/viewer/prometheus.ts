/**
 * Asks Prometheus' HTTP API and makes Grafana's data frames of the answers, in the shapes in which Grafana's
 * own Prometheus data source would hand them to a panel: a frame per series, one table, or one frame of
 * buckets.
 */

import { type DataFrame, type Field, FieldType, type Labels, type TimeRange, rangeUtil } from '@grafana/data';

import type { Target } from './model';

interface Series {
  metric: Labels;
  values: Array<[number, string]>;
}

export interface Interval {
  step: number; // milliseconds
  builtin: Record<string, string>;
}

/** As Grafana chooses it: a point per pixel at most, and never finer than Prometheus has them. */
export function intervalOf(range: TimeRange, width: number, scrapeSeconds: number): Interval {
  const scrape = scrapeSeconds * 1000;
  const { interval, intervalMs } = rangeUtil.calculateInterval(
    range,
    Math.max(width, 100),
    `${scrapeSeconds}s`,
  );
  const seconds = (range.to.valueOf() - range.from.valueOf()) / 1000;
  const builtin = {
    __interval: interval,
    __interval_ms: String(intervalMs),
    __rate_interval: `${Math.max(intervalMs + scrape, 4 * scrape) / 1000}s`,
    __range: `${Math.round(seconds)}s`,
    __range_s: String(Math.round(seconds)),
  };
  return { step: intervalMs, builtin };
}

export class Prometheus {
  async labelValues(label: string, series: string): Promise<string[]> {
    return this.get(`label/${label}/values`, { 'match[]': series });
  }

  /** The answer to one target, whose expression is filled already. */
  async ask(target: Target, range: TimeRange, step: number, tables: number): Promise<DataFrame[]> {
    const series = await (target.instant
      ? this.instant(target.expr, range)
      : this.range(target.expr, range, step));
    switch (target.format) {
      case 'table':
        return [asTable(series, target.refId, tables > 1 ? `Value #${target.refId}` : 'Value')];
      case 'heatmap':
        return series.length ? [asBuckets(series, target.refId)] : [];
      default:
        return series.map((each) => asFrame(each, target, step));
    }
  }

  private async instant(query: string, range: TimeRange): Promise<Series[]> {
    const time = String(range.to.valueOf() / 1000);
    const { result, resultType } = await this.get<any>('query', { query, time });
    return resultType === 'scalar'
      ? [{ metric: {}, values: [result] }]
      : result.map((each: any) => ({ metric: each.metric, values: [each.value] }));
  }

  private async range(query: string, range: TimeRange, step: number): Promise<Series[]> {
    const aligned = (time: number) => (Math.floor(time / step) * step) / 1000;
    const { result } = await this.get<any>('query_range', {
      query,
      start: String(aligned(range.from.valueOf())),
      end: String(aligned(range.to.valueOf())),
      step: String(step / 1000),
    });
    return result;
  }

  private async get<T>(call: string, parameters: Record<string, string>): Promise<T> {
    const answer = await fetch(`/api/v1/${call}?${new URLSearchParams(parameters)}`);
    const body = await answer.json();
    if (body.status !== 'success') {
      throw new Error(body.error ?? answer.statusText);
    }
    return body.data;
  }
}

export const prometheus = new Prometheus();

function nameOf(metric: Labels, legend: string | undefined): string {
  if (legend && legend !== '__auto') {
    return legend.replace(/\{\{\s*([\w.-]+)\s*\}\}/g, (_, label) => metric[label] ?? '');
  }
  const { __name__: name = '', ...labels } = metric;
  const listed = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
  return listed.length ? `${name}{${listed.join(', ')}}` : name || 'Value';
}

function times(values: number[], step?: number): Field {
  return { name: 'Time', type: FieldType.time, config: step ? { interval: step } : {}, values };
}

function asFrame(series: Series, target: Target, step: number): DataFrame {
  const { __name__, ...labels } = series.metric;
  const value: Field = {
    name: 'Value',
    type: FieldType.number,
    labels,
    config: { displayNameFromDS: nameOf(series.metric, target.legendFormat) },
    values: series.values.map(([, value]) => Number(value)),
  };
  const time = times(
    series.values.map(([time]) => time * 1000),
    step,
  );
  return { refId: target.refId, fields: [time, value], length: series.values.length };
}

function asTable(series: Series[], refId: string, valueName: string): DataFrame {
  const labels = [...new Set(series.flatMap((each) => Object.keys(each.metric)))].sort();
  const rows = series.flatMap((each) =>
    each.values.map(([time, value]) => ({ time, value, metric: each.metric })),
  );
  const fields: Field[] = [
    times(rows.map((row) => row.time * 1000)),
    ...labels.map((label) => ({
      name: label,
      type: FieldType.string,
      config: { filterable: true },
      values: rows.map((row) => row.metric[label] ?? ''),
    })),
    { name: valueName, type: FieldType.number, config: {}, values: rows.map((row) => Number(row.value)) },
  ];
  return { refId, fields, length: rows.length };
}

/**
 * A field per bucket, from the lowest up, holding what is in that bucket alone: Prometheus counts all below,
 * too.
 */
function asBuckets(series: Series[], refId: string): DataFrame {
  const bound = (each: Series) => (each.metric.le === '+Inf' ? Infinity : Number(each.metric.le));
  const sorted = [...series].sort((one, other) => bound(one) - bound(other));
  const moments = [...new Set(sorted.flatMap((each) => each.values.map(([time]) => time)))].sort(
    (a, b) => a - b,
  );
  let below = moments.map(() => 0);
  const buckets = sorted.map((each): Field => {
    const known = new Map(each.values.map(([time, value]) => [time, Number(value)]));
    const upTo = moments.map((time, index) => known.get(time) ?? below[index]);
    const values = upTo.map((value, index) => Math.max(0, value - below[index]));
    below = upTo;
    return { name: each.metric.le, type: FieldType.number, labels: each.metric, config: {}, values };
  });
  return { refId, fields: [times(moments.map((time) => time * 1000)), ...buckets], length: moments.length };
}
