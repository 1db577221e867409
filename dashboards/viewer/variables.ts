/**
 * Grafana's variables: which there are, what was chosen, and a text with the values in their places.
 *
 * Only what the dashboards of this project use is here; a text with a name that is not known stays as it is,
 * so that Prometheus (and with it the panel) says what is wrong.
 */

import { type ScopedVars, formattedValueToString, getFieldDisplayName } from '@grafana/data';

import { ALL, type Chosen, type Variable } from './model';
import type { Prometheus } from './prometheus';

const NAME = /\$\{(\w+)(?:\.([^:}]+)|\["([^"]+)"\])?(?::(\w+))?\}|\$(\w+)/g;

/** What a text is filled with. */
export interface Filling {
  variables: Variable[];
  chosen: Chosen;
  builtin: Record<string, string>;
}

/**
 * Fill a query: several values become alternatives of a regular expression, as Grafana's Prometheus does it.
 */
export function inQuery(text: string, filling: Filling): string {
  return fill(text, filling, (variable, chosen) => {
    if (chosen.includes(ALL) && variable.allValue) {
      return variable.allValue;
    }
    const values = chosen.includes(ALL) ? optionsOf(variable) : chosen;
    const escaped = variable.multi || variable.includeAll ? values.map(escapedTwice) : values;
    return escaped.length === 1 ? escaped[0] : `(${escaped.join('|')})`;
  });
}

/** Once for the regular expression, and its backslashes once more for the string it stands in. */
function escapedTwice(value: string): string {
  return value.replace(/[.*+?^${}()|[\]\\]/g, '\\\\$&');
}

/**
 * Fill a title or a link; `scoped` knows the cell that a link belongs to. With a format it is for an
 * address.
 */
export function inText(text: string, filling: Filling, scoped?: ScopedVars, format?: unknown): string {
  const write = format === undefined ? (value: string) => value : encodeURIComponent;
  const cell = text.replace(NAME, (whole, name, dotted, quoted) => {
    const found = ofCell(name, dotted ?? quoted, scoped);
    return found === undefined ? whole : write(found);
  });
  return fill(cell, filling, (variable, chosen, wanted) => {
    if (wanted === 'queryparam') {
      return new URLSearchParams(chosen.map((value) => [`var-${variable.name}`, value])).toString();
    }
    return chosen.map((value) => write(value === ALL ? 'All' : value)).join(',');
  });
}

type Write = (variable: Variable, chosen: string[], format?: string) => string;

function fill(text: string, filling: Filling, write: Write): string {
  return text.replace(NAME, (whole, braced, _dotted, _quoted, format, bare) => {
    const name: string = braced ?? bare;
    const variable = filling.variables.find((each) => each.name === name);
    return filling.builtin[name] ?? (variable ? write(variable, filling.chosen[name] ?? [], format) : whole);
  });
}

/** ${__data.fields.path}, ${__field.labels.path} and the like, of the cell or bar that a link is on. */
function ofCell(name: string, rest: string | undefined, scoped?: ScopedVars): string | undefined {
  const context = scoped?.__dataContext?.value;
  if (!context || !['__data', '__field', '__value', '__series'].includes(name)) {
    return undefined;
  }
  const { frame, field, data, rowIndex } = context;
  if (name === '__data') {
    const wanted = rest?.replace(/^fields(\.|\[["']?)/, '').replace(/["']?\]$/, '');
    const found = frame.fields.find(
      (each: typeof field) => each.name === wanted || getFieldDisplayName(each, frame, data) === wanted,
    );
    return found && rowIndex !== undefined ? String(found.values[rowIndex]) : '';
  }
  if (name === '__value') {
    const value = context.calculatedValue?.numeric ?? field.values[rowIndex ?? field.values.length - 1];
    return rest === 'text' && field.display ? formattedValueToString(field.display(value)) : String(value);
  }
  return rest?.startsWith('labels.')
    ? (field.labels?.[rest.slice(7)] ?? '')
    : getFieldDisplayName(field, frame, data);
}

export function optionsOf(variable: Variable): string[] {
  return (variable.options ?? []).map((option) => String(option.value));
}

/** Ask Prometheus what each variable may be; a later one may depend on what was chosen for an earlier one. */
export async function resolve(
  variables: Variable[],
  wanted: Chosen,
  prometheus: Prometheus,
): Promise<{ variables: Variable[]; chosen: Chosen }> {
  const done: Variable[] = [];
  const chosen: Chosen = {};
  for (const variable of variables) {
    if (variable.type === 'datasource') {
      done.push({ ...variable, options: [{ text: 'Prometheus', value: 'prometheus' }] });
      chosen[variable.name] = ['prometheus'];
      continue;
    }
    const filling = { variables: done, chosen, builtin: {} };
    const values = variable.type === 'query' ? await ask(variable, filling, prometheus) : given(variable);
    done.push({ ...variable, options: values.map((value) => ({ text: value, value })) });
    const preset = [variable.current?.value ?? []].flat().map(String);
    const kept = (wanted[variable.name] ?? preset).filter((value) => value === ALL || values.includes(value));
    chosen[variable.name] = kept.length ? kept : variable.includeAll ? [ALL] : values.slice(0, 1);
  }
  return { variables: done, chosen };
}

function given(variable: Variable): string[] {
  const text = typeof variable.query === 'string' ? variable.query : '';
  return variable.type === 'custom' ? text.split(',').map((each) => each.trim()) : [text];
}

async function ask(variable: Variable, filling: Filling, prometheus: Prometheus): Promise<string[]> {
  const query = typeof variable.query === 'string' ? variable.query : String(variable.query?.query ?? '');
  const parts = /^label_values\((.*),\s*(\w+)\)$/s.exec(query);
  if (!parts) {
    throw new Error(
      `variable ${variable.name}: this viewer knows label_values(series, label) only, not ${query}`,
    );
  }
  const values = await prometheus.labelValues(parts[2], inQuery(parts[1], filling));
  return values.sort((one, other) => one.localeCompare(other, undefined, { numeric: true }));
}
