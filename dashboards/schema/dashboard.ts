/**
 * What a dashboard file of this project may say: Grafana's own types, made strict.
 *
 * Grafana's Dashboard type leaves open what belongs to a kind of panel (`options`,
 * `fieldConfig.defaults.custom`) and what is asked of a data source (`targets`), and so would let a misspelt
 * key pass. The same package has the types of every kind of panel; here they are put into their places. Only
 * the query of Prometheus is written down by hand, because no package of Grafana's that stands alone has it.
 *
 * A file may leave out what has a default; this must never allow what Grafana does not know.
 */

import type { DataQuery } from '@grafana/schema';
import type * as dashboard from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type * as bargauge from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
import type * as heatmap from '@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as statetimeline from '@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type * as text from '@grafana/schema/dist/types/raw/composable/text/panelcfg/x/types.gen';
import type * as timeseries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

/** Whatever has a default may be left out, at every depth. */
type Sparse<T> =
  T extends Array<infer Each>
    ? Array<Sparse<Each>>
    : T extends object
      ? { [Key in keyof T]?: Sparse<T[Key]> }
      : T;

interface PrometheusQuery extends DataQuery {
  expr: string;
  legendFormat?: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  range?: boolean;
  exemplar?: boolean;
  interval?: string;
  editorMode?: 'code' | 'builder';
}

interface FieldConfig<Custom> extends Omit<dashboard.FieldConfig, 'custom'> {
  custom?: Sparse<Custom>;
}

interface Override<Custom> {
  matcher: dashboard.MatcherConfig;
  properties: Array<{
    id: Exclude<keyof dashboard.FieldConfig, 'custom'> | `custom.${Extract<keyof Custom, string>}`;
    value?: unknown;
  }>;
}

/**
 * The type asks for everything that a dashboard's link has; Grafana's editor writes three keys for a
 * panel's.
 */
interface PanelLink extends Partial<dashboard.DashboardLink> {
  title: string;
  url: string;
}

interface Panel<Kind extends string, Options, Custom> extends Omit<
  dashboard.Panel,
  'type' | 'options' | 'fieldConfig' | 'targets' | 'links'
> {
  type: Kind;
  links?: PanelLink[];
  options?: Sparse<Options>;
  fieldConfig?: { defaults: FieldConfig<Custom>; overrides: Array<Override<Custom>> };
  targets?: PrometheusQuery[];
}

interface Row extends Omit<dashboard.RowPanel, 'panels'> {
  panels: DataPanel[];
}

/** No options of its own for fields. */
interface Nothing {}

/** @discriminator type */
type DataPanel =
  | Panel<'timeseries', timeseries.Options, timeseries.FieldConfig>
  | Panel<'stat', stat.Options, Nothing>
  | Panel<'table', table.Options, table.FieldConfig>
  | Panel<'bargauge', bargauge.Options, Nothing>
  | Panel<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | Panel<'state-timeline', statetimeline.Options, statetimeline.FieldConfig>
  | Panel<'text', text.Options, Nothing>;

/** @discriminator type */
type AnyPanel = Row | DataPanel;

export interface Dashboard extends Omit<dashboard.Dashboard, 'panels'> {
  panels: AnyPanel[];
}
