/**
 * A panel's field configuration (units, thresholds, colours, overrides, links) put on its data, and its
 * transformations before that: Grafana's own functions, with what its panel plugins would register.
 */

import {
  type DataFrame,
  type Field,
  type FieldConfigPropertyItem,
  type FieldConfigSource,
  FieldConfigOptionsRegistry,
  type GrafanaTheme2,
  type InterpolateFunction,
  applyFieldOverrides,
  cacheFieldDisplayNames,
  locationUtil,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

import type { Panel } from './model';

/** What Grafana's plugins set where a file says nothing. */
const DEFAULTS: Record<string, Record<string, unknown>> = {
  timeseries: {
    drawStyle: 'line',
    lineInterpolation: 'linear',
    lineWidth: 1,
    fillOpacity: 0,
    gradientMode: 'none',
    showPoints: 'auto',
    pointSize: 5,
    spanNulls: false,
    axisPlacement: 'auto',
    axisBorderShow: false,
    stacking: { mode: 'none', group: 'A' },
    scaleDistribution: { type: 'linear' },
    thresholdsStyle: { mode: 'off' },
    hideFrom: { tooltip: false, viz: false, legend: false },
  },
  'state-timeline': { fillOpacity: 70, lineWidth: 0 },
  table: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false },
};
const PALETTE = { mode: 'palette-classic' };

standardTransformersRegistry.setInit(() => {
  // Two of them have a second name in the list.
  const byId = new Map(Object.values(standardTransformers).map((each) => [each.id, each]));
  return [...byId.values()].map((each) => ({
    id: each.id,
    name: each.name,
    transformation: async () => each,
  })) as never;
});

export async function transformed(
  panel: Panel,
  frames: DataFrame[],
  replace: InterpolateFunction,
): Promise<DataFrame[]> {
  const chosen = (panel.transformations ?? []).filter((each) => !each.disabled);
  return chosen.length
    ? lastValueFrom(transformDataFrame(chosen as never, frames, { interpolate: replace }))
    : frames;
}

export function configured(
  panel: Panel,
  frames: DataFrame[],
  theme: GrafanaTheme2,
  replace: InterpolateFunction,
): DataFrame[] {
  const source = sourceOf(panel);
  const made = applyFieldOverrides({
    data: frames,
    fieldConfig: source,
    fieldConfigRegistry: registryOf(source),
    replaceVariables: replace,
    theme,
    timeZone: 'browser',
  });
  cacheFieldDisplayNames(made); // tables look at nothing else
  return made;
}

/** The file's field configuration with the plugin's defaults below it. */
export function sourceOf(panel: Panel): FieldConfigSource {
  const { defaults = {}, overrides = [] } = panel.fieldConfig ?? {};
  const color = defaults.color ?? (panel.type === 'timeseries' ? PALETTE : { mode: 'thresholds' });
  const thresholds = defaults.thresholds ?? { mode: 'absolute', steps: [{ color: 'green', value: null }] };
  const custom = { ...DEFAULTS[panel.type], ...defaults.custom };
  return {
    defaults: { ...defaults, color, custom, thresholds: lowest(thresholds) },
    overrides: overrides.map((rule) => ({
      ...rule,
      properties: rule.properties.map((each) =>
        each.id === 'thresholds' ? { ...each, value: lowest(each.value as never) } : each,
      ),
    })),
  } as FieldConfigSource;
}

/** JSON has no -Infinity; Grafana writes null for it. */
function lowest(thresholds: { mode: string; steps: Array<{ color: string; value: number | null }> }) {
  return {
    ...thresholds,
    steps: thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity })),
  };
}

/** A property for everything that the file sets. */
function registryOf(source: FieldConfigSource): FieldConfigOptionsRegistry {
  const ids = new Set<string>();
  Object.keys(source.defaults).forEach((key) => key !== 'custom' && ids.add(key));
  Object.keys(source.defaults.custom ?? {}).forEach((key) => ids.add(`custom.${key}`));
  source.overrides.forEach((rule) => rule.properties.forEach((each) => ids.add(each.id)));
  return new FieldConfigOptionsRegistry(() => [...ids].map(property));
}

function property(id: string): FieldConfigPropertyItem {
  const isCustom = id.startsWith('custom.');
  return {
    id,
    path: isCustom ? id.slice('custom.'.length) : id,
    name: id,
    isCustom,
    process: (value: unknown) => value,
    shouldApply: (field: Field) => !isCustom || field.name !== 'Time',
    override: () => null,
    editor: () => null,
  } as unknown as FieldConfigPropertyItem;
}

locationUtil.initialize({
  config: { appSubUrl: '' } as never,
  getTimeRangeForUrl: () => ({ from: 'now-5m', to: 'now' }),
  getVariablesUrlParams: () => ({}),
});
