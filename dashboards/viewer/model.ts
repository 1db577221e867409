/**
 * The words of a dashboard file that the viewer understands, and what the page's address says.
 *
 * The types are Grafana's own. The address has Grafana's form (/d/UID?from=now-15m&to=now&var-path=wire), so
 * that links between dashboards work here as they do there.
 */

import { dateMath, dateTime, type TimeRange } from '@grafana/data';
import type { Dashboard, DashboardLink, Panel, RowPanel, VariableModel } from '@grafana/schema';

export type { Dashboard, DashboardLink, Panel, RowPanel };
export type Variable = VariableModel;

export interface Target {
  refId: string;
  expr: string;
  legendFormat?: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  hide?: boolean;
}

/** What the server of this page knows: the dashboards, and how often Prometheus asks. */
export interface Settings {
  scrape_seconds: number;
  dashboards: Dashboard[];
}

/** The chosen values of every variable; ALL stands for all of them. */
export type Chosen = Record<string, string[]>;
export const ALL = '$__all';

export const SPANS = [2, 5, 15, 60];

export interface Place {
  uid: string;
  from: string;
  to: string;
  chosen: Chosen;
}

/** Read the page's address; what it does not say is taken from the dashboard. */
export function place(dashboards: Dashboard[]): Place {
  const address = new URL(window.location.href);
  const named = /^\/d\/([^/]+)/.exec(address.pathname)?.[1];
  const uid = named ?? dashboards[0]?.uid ?? '';
  const chosen: Chosen = {};
  for (const [key, value] of address.searchParams) {
    if (key.startsWith('var-')) {
      const known = (chosen[key.slice(4)] ??= []);
      known.push(value === 'All' ? ALL : value);
    }
  }
  return {
    uid,
    from: address.searchParams.get('from') ?? 'now-5m',
    to: address.searchParams.get('to') ?? 'now',
    chosen,
  };
}

export function addressOf(place: Place): string {
  return `/d/${place.uid}?${parametersOf(place.from, place.to, place.chosen)}`;
}

export function parametersOf(from: string, to: string, chosen: Chosen): string {
  const search = new URLSearchParams({ from, to });
  for (const [name, values] of Object.entries(chosen)) {
    values.forEach((value) => search.append(`var-${name}`, value));
  }
  return search.toString();
}

export function rangeOf(place: Place): TimeRange {
  const moment = (text: string) =>
    /^\d+$/.test(text) ? dateTime(Number(text)) : (dateMath.toDateTime(text, {}) ?? dateTime());
  return { from: moment(place.from), to: moment(place.to), raw: { from: place.from, to: place.to } };
}

export function isRow(panel: Panel | RowPanel): panel is RowPanel {
  return panel.type === 'row';
}
